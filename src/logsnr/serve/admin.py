"""Routes of administrators and auditors: keys, grants and the trail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from logsnr.core.moment import parse_moment
from logsnr.serve.requests import GrantRequest, KeyRequest
from logsnr.serve.rights import Admin, Auditor, Everyone
from logsnr.serve.store import Store


def administration(store: Store) -> APIRouter:
    """The routes over a store."""
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
        return {"data": list(store.concepts(decision))}

    @routes.get("/audit", summary="The trail, one JSON object a line", response_class=StreamingResponse)
    def trail(
        _: Auditor,
        after: Annotated[int, Query(ge=0, lt=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=100_000)] = 10_000,
    ) -> StreamingResponse:
        def lines() -> Iterator[str]:
            for line in store.trail(after=after, limit=limit):
                yield json.dumps(line, sort_keys=True) + "\n"

        return StreamingResponse(lines(), media_type="application/jsonl")

    @routes.get("/audit/head", summary="Number and digest of the last line: note them elsewhere")
    def head(_: Auditor) -> dict[str, Any]:
        number, digest = store.head()
        return {"number": number, "digest": digest}

    return routes


def _seconds(moment: str | None) -> float | None:
    return parse_moment(moment).timestamp() if moment else None
