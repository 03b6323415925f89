"""The gate before an engine that fleets already run: one that speaks the OpenAI Images format and knows no keys.

    app = guarded("http://127.0.0.1:8000", Store(Path("serve.db")), public="hidden", unlocked={"sandal": "original"})

Such an engine serves the public model and, under names of their own, models that draw what is hidden. Which of them a
request reaches, its decision says: the name that it asks for is not looked at, so that nobody asks for the original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx2

from logsnr.serve.errors import RefusedError
from logsnr.serve.gate import GENERATIONS, App, Gate, Message, Receive, Send, refuse
from logsnr.serve.store import Decision, Store

_ALIVE = "/healthz"


class Upstream:
    """Passes requests for images on to an engine; ``unlocked`` names its models by the concepts that they draw."""

    def __init__(self, url: str, *, public: str, unlocked: Mapping[str, str], seconds: float = 120.0):
        self.url, self.public, self.unlocked = url.rstrip("/"), public, dict(unlocked)
        self.client = httpx2.AsyncClient(timeout=seconds, trust_env=False)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer requests for images and for health; there is nothing else here."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        except RefusedError as refusal:
            await refuse(send, refusal)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["path"] == _ALIVE:
            await _respond(send, 200, b'{"status": "alive"}', "application/json")
            return
        if (scope["method"], scope["path"]) != ("POST", GENERATIONS):
            raise RefusedError(404, "not_found", "there is nothing here")
        asked: dict[str, Any] = json.loads((await receive())["body"])
        decision = scope.get("state", {}).get("decision") or Decision("ungated")
        passed = {name: value for name, value in asked.items() if name not in ("unlock", "model")}
        passed["model"] = self._model(decision)
        try:
            found = await self.client.post(f"{self.url}{GENERATIONS}", json=passed)
        except httpx2.HTTPError:
            raise RefusedError(503, "engine", "the engine does not answer", retry_after=5) from None
        kind = found.headers.get("content-type", "application/json")
        told = {"x-concepts-unlocked": ",".join(decision.concepts)}
        await _respond(send, found.status_code, found.content, kind, told)

    def _model(self, decision: Decision) -> str:
        """The engine's model for what a decision unlocks.

        Raises:
            RefusedError: 503, there is none: it is not answered by another.
        """
        if not decision.concepts:
            return self.public
        names = {self.unlocked.get(concept) for concept in decision.concepts}
        if len(names) != 1 or None in names:
            raise RefusedError(503, "no_model", "the engine has no model that unlocks that")
        return str(names.pop())

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start, and close the connections in the end."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.client.aclose()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def guarded(url: str, store: Store, *, public: str, unlocked: Mapping[str, str]) -> App:
    """An engine at a URL behind the gate, as an ASGI application."""
    return Gate(Upstream(url, public=public, unlocked=unlocked), store)


async def _respond(send: Send, status: int, body: bytes, kind: str, told: Mapping[str, str] | None = None) -> None:
    headers = {"content-type": kind, "content-length": str(len(body)), **(told or {})}
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
