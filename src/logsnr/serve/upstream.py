"""The gate before engines that fleets already run: they speak the OpenAI Images format, and know no keys.

    hidden, original = Target("http://127.0.0.1:8000", "hidden"), Target("http://127.0.0.1:8001", "original")
    app = guarded(Store(Path("serve.db")), public=hidden, unlocked={"sandal": original})

The public model is served by one engine, and what draws a hidden concept by another, or under another name. Which of
them a request reaches, its decision says, and of what it asks for only plain fields pass: no name of a model, and
nothing that an engine might take for weights. Whoever is granted a concept reaches all that its target draws.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from logsnr.serve.errors import RefusedError
from logsnr.serve.gate import App, Gate, Message, Receive, Send, is_generation, refuse
from logsnr.serve.images import UNLOCKED, quoted
from logsnr.serve.store import Decision, Store

PASSED = ("prompt", "negative_prompt", "n", "size", "seed", "num_inference_steps", "guidance_scale", "response_format")
"""Fields that reach an engine, plain values all of them."""


@dataclass(frozen=True)
class Target:
    """An engine's address, and what it calls the model."""

    url: str
    model: str


class Upstream:
    """Passes requests for images on; ``unlocked`` says by concept which target draws it."""

    def __init__(self, public: Target, unlocked: Mapping[str, Target], *, max_steps: int = 100, seconds: float = 120.0):
        self.public, self.unlocked, self.max_steps = public, dict(unlocked), max_steps
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
        if scope["path"] == "/healthz":
            await _respond(send, 200, b'{"status": "alive"}', "application/json")
            return
        if not is_generation(scope):
            raise RefusedError(404, "not_found", "there is nothing here")
        asked: dict[str, Any] = json.loads((await receive())["body"])
        decision = scope.get("state", {}).get("decision") or Decision("ungated")
        target = self._target(decision)
        body = json.dumps({**self._passed(asked), "model": target.model}).encode()
        url = f"{target.url.rstrip('/')}/v1/images/generations"
        try:
            found = await self.client.post(url, content=body, headers={"content-type": "application/json"})
        except httpx2.HTTPError:
            raise RefusedError(503, "engine", "the engine does not answer", retry_after=5) from None
        kind = found.headers.get("content-type", "application/json")
        await _respond(send, found.status_code, found.content, kind, {UNLOCKED: quoted(decision.concepts)})

    def _passed(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values of known fields.

        Raises:
            RefusedError: 400, another field, or one that is no plain value.
        """
        for name, value in asked.items():
            if name not in (*PASSED, "unlock", "model", "user") or not (name == "unlock" or _is_plain(value)):
                raise RefusedError(400, "input", f"{name[:100]} cannot be passed on", param=name[:100])
        if asked.get("num_inference_steps", 1) not in range(1, self.max_steps + 1):
            line = f"a request has 1 to {self.max_steps} steps"
            raise RefusedError(400, "steps", line, param="num_inference_steps")
        return {name: value for name, value in asked.items() if name in PASSED}

    def _target(self, decision: Decision) -> Target:
        """Where what a decision unlocks is drawn.

        Raises:
            RefusedError: 503, nowhere, or at several places: it is not answered by another.
        """
        if not decision.concepts:
            return self.public
        found = {self.unlocked.get(concept) for concept in decision.concepts}
        target = found.pop()
        if target is None or found:
            raise RefusedError(503, "no_model", "no engine here unlocks that")
        return target

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start, and close the connections in the end."""
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self.client.aclose()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return


def guarded(store: Store, *, public: Target, unlocked: Mapping[str, Target], max_steps: int = 100) -> App:
    """Engines behind the gate, as an ASGI application."""

    def valid(concepts: Any) -> tuple[str, ...]:
        return tuple(concept for concept in concepts if concept in unlocked)

    return Gate(Upstream(public, unlocked, max_steps=max_steps), store, valid=valid)


def _is_plain(value: Any) -> bool:
    """Whether a value is a short text, a finite number or a truth value."""
    if isinstance(value, str):
        return len(value) <= 4000 and value.encode("utf-8", "replace").decode() == value
    return isinstance(value, int | float) and abs(value) < 2**63


async def _respond(send: Send, status: int, body: bytes, kind: str, told: Mapping[str, str] | None = None) -> None:
    headers = {"content-type": kind, "content-length": str(len(body)), **(told or {})}
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
