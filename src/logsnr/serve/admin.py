"""Routes of administrators and auditors: keys, grants and the trail."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from logsnr.core.moment import later
from logsnr.serve.requests import GrantRequest, KeyRequest
from logsnr.serve.rights import Admin, Auditor, Everyone
from logsnr.serve.store import Store
from logsnr.serve.studio import Studio


def administration(store: Store, studio: Studio) -> APIRouter:
    """The routes over a store; concepts are those that the studio's keys bring back."""
    routes = APIRouter(prefix="/v1")

    @routes.get("/keys", summary="All keys, without their tokens")
    def keys(_: Admin) -> dict[str, Any]:
        return {"data": store.keys()}

    @routes.post("/keys", status_code=201, summary="A new key; its token is shown here and never again")
    def add_key(asked: KeyRequest, by: Admin) -> dict[str, Any]:
        options = {"images_per_day": asked.images_per_day, "not_after": _seconds(asked.not_after)}
        token, row = store.add_key(asked.role, asked.label, by=by, concepts=tuple(asked.concepts), **options)
        return {**row, "token": token}

    @routes.post("/keys/{name}/rotate", summary="A new token for a key; the old one is refused at once")
    def rotate(name: str, by: Admin) -> dict[str, Any]:
        return {"token": store.rotate(name, by=by), **store.key(name)}

    @routes.delete("/keys/{name}", status_code=204, summary="Refuse a key's token from now on")
    def revoke(name: str, by: Admin) -> Response:
        store.revoke(name, by=by)
        return Response(status_code=204)

    @routes.get("/grants", summary="All grants, those withdrawn among them")
    def grants(_: Admin) -> dict[str, Any]:
        return {"data": store.grants()}

    @routes.post("/grants", status_code=201, summary="Let a member's key unlock a concept")
    def grant(asked: GrantRequest, by: Admin) -> dict[str, Any]:
        return store.grant(asked.key, asked.concept, by=by, not_after=_seconds(asked.not_after))

    @routes.delete("/grants/{name}", status_code=204, summary="Withdraw a grant")
    def withdraw(name: str, by: Admin) -> Response:
        store.withdraw(name, by=by)
        return Response(status_code=204)

    @routes.get("/concepts", summary="What the token unlocks")
    def concepts(decision: Everyone) -> dict[str, Any]:
        return {"data": list(studio.valid(store.concepts(decision)))}

    @routes.get("/audit", summary="The trail, one JSON object a line", response_class=Response)
    def trail(
        _: Auditor,
        after: Annotated[int, Query(ge=0, lt=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    ) -> Response:
        lines = [json.dumps(line, sort_keys=True) + "\n" for line in store.trail(after=after, limit=limit)]
        return Response("".join(lines), media_type="application/jsonl")

    @routes.get("/audit/head", summary="Number and digest of the last line: note them elsewhere")
    def head(_: Auditor) -> dict[str, Any]:
        number, digest = store.head()
        return {"number": number, "digest": digest}

    return routes


def _seconds(moment: str | None) -> float | None:
    return None if moment is None else later(moment, time.time())
