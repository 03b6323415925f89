"""The gate: an ASGI middleware that decides for every request what it may do, before anything behind it hears of it.

Behind it ``scope["state"]["decision"]`` is the only source of rights: the token is taken off, and what a request asks
for is not what it is given. It stands before logsnr's own server, or before another engine that speaks the OpenAI
Images format (``upstream``).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address, ip_network
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from logsnr.serve.errors import RefusedError, as_refusal
from logsnr.serve.meters import Meters
from logsnr.serve.store import Ask, Decision, Store, Valid

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GENERATIONS = "/v1/images/generations"
MOST_IMAGES, MOST_CONCEPTS, MOST_NAME = 64, 16, 100
_SECONDS = 10.0
"""How long the body of a request may take to arrive."""
_SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
}
_LOG = logging.getLogger(__name__)


class Gate:
    """Decides by a store; ``told`` goes into each line of the audit, and ``valid`` are concepts that have a key."""

    def __init__(
        self,
        app: App,
        store: Store,
        *,
        meters: Meters | None = None,
        told: dict[str, Any] | None = None,
        log_prompts: bool = False,
        valid: Valid = tuple,
    ):
        self.app, self.store, self.meters = app, store, meters or Meters()
        self.told, self.log_prompts, self.valid = told or {}, log_prompts, valid

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a refused request; pass on every other with its decision, and without its token."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request, begun = secrets.token_hex(8), time.monotonic()
        passed = _Passed(send, request)
        try:
            if scope["type"] != "http":
                raise RefusedError(404, "not_found", "there is nothing here")
            token, body = _token(scope), await _body(scope, receive, self.store.limits.body_bytes)
            ask, body = self._ask(scope, request, token, body)
            decision = await self._decide(ask)
            await self._pass(scope, body, receive, passed, decision)
        except RefusedError as refusal:
            self.meters.refusals.labels(refusal.code).inc()
            await refuse(passed, refusal)
        finally:
            self.meters.requests.labels(str(passed.status or 499)).inc()
            if is_generation(scope) and passed.status == 200:
                self.meters.seconds.observe(time.monotonic() - begun)

    async def _pass(self, scope: Message, body: bytes, receive: Receive, passed: _Passed, decision: Decision) -> None:
        taken = (b"authorization", b"content-length")
        headers = [(name, value) for name, value in scope["headers"] if name not in taken]
        headers.append((b"content-length", str(len(body)).encode()))
        inner = {**scope, "headers": headers, "state": {**scope.get("state", {}), "decision": decision}}
        try:
            await self.app(inner, _again(body, receive), passed)
        except Exception as error:
            _LOG.error("a request failed: %s", type(error).__name__)
            if not passed.status:
                await refuse(passed, as_refusal(error))
        finally:
            if (passed.status or 500) >= 400 and (decision.spent or decision.concepts):
                try:
                    await run_in_threadpool(self.store.undone, decision, passed.status or 499)
                except (SQLAlchemyError, OSError):
                    self._unwritten()

    def _ask(self, scope: Message, request: str, token: str | None, body: bytes) -> tuple[Ask, bytes]:
        """What a request asks for; one for images gets a seed here, so that the audit knows it."""
        address = _address(scope)
        if not is_generation(scope):
            return Ask(request, address, token), body
        asked = {name: value for name, value in _parsed(body).items() if value is not None}
        asked.setdefault("seed", secrets.randbelow(2**32))
        images, prompt = _images(asked), asked.get("prompt")
        text = prompt if isinstance(prompt, str) else ""
        hashed = {"prompt": text} if self.log_prompts else {"prompt_hash": self.store.hashed(text)}
        seed = asked["seed"] if isinstance(asked["seed"], int) else None
        told = {**self.told, **hashed, "seed": seed, "images": images}
        return Ask(request, address, token, images, _unlock(asked), told), json.dumps(asked).encode()

    async def _decide(self, ask: Ask) -> Decision:
        """The store's answer; where nothing can be written, nothing is unlocked and no token is taken.

        Raises:
            RefusedError: as the store says, or 503.
        """
        if ask.token is None and not ask.images:
            return Decision(ask.request)
        try:
            found = await run_in_threadpool(self.store.decide, ask, self.valid)
        except (SQLAlchemyError, OSError):
            self._unwritten()
            if ask.token is None and not ask.unlock:
                return Decision(ask.request, images=ask.images)
            raise RefusedError(503, "no_audit", "keys cannot be enforced at the moment", retry_after=5) from None
        if isinstance(found, RefusedError):
            raise found
        return found

    def _unwritten(self) -> None:
        self.meters.unwritten.inc()
        _LOG.error("the database cannot be written: nothing is unlocked until it can")


class _Passed:
    """``send`` that keeps the status, and adds the request's name and safe headers."""

    def __init__(self, send: Send, request: str):
        self.send, self.request, self.status = send, request, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.decode("latin-1").lower() for name, _ in message.get("headers", [])}
            added = {name: value for name, value in _SAFE.items() if name not in given} | {"x-request-id": self.request}
            more = [(name.encode(), value.encode()) for name, value in added.items()]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await self.send(message)


def is_generation(scope: Message) -> bool:
    """Whether a request is for images, wherever the application is mounted."""
    root = scope.get("root_path", "").rstrip("/")
    paths = (GENERATIONS, f"{root}{GENERATIONS}")
    return scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in paths


def _address(scope: Message) -> str:
    """Where a request comes from; of IPv6 the network, for everybody there has as many addresses as they like."""
    text = (scope.get("client") or ("unknown", 0))[0]
    try:
        found = ip_address(text)
    except ValueError:
        return text
    return str(ip_network(f"{text.partition('%')[0]}/64", strict=False)) if found.version == 6 else text


async def refuse(send: Send, refusal: RefusedError) -> None:
    """Answer with a refusal."""
    body = json.dumps(refusal.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers()}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _token(scope: Message) -> str | None:
    """The bearer token of a request; None where there is no word of one.

    Raises:
        RefusedError: 401, another kind of authorization, or several.
    """
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        return None
    found = re.fullmatch(rb"(?i:bearer) +(\S{1,200})", given[0].strip())
    if len(given) > 1 or not found:
        raise RefusedError(401, "bad_token", "give one token, as Authorization: Bearer TOKEN")
    return found[1].decode("latin-1")


async def _body(scope: Message, receive: Receive, most: int) -> bytes:
    """The whole body.

    Raises:
        RefusedError: 413, it is too long; 408, it does not arrive; 400, the client has gone.
    """
    parts, size, due = [], 0, time.monotonic() + _SECONDS
    more = True
    while more:
        try:
            message = await asyncio.wait_for(receive(), max(0.01, due - time.monotonic()))
        except TimeoutError:
            raise RefusedError(408, "slow", f"the request did not arrive within {_SECONDS:g} s") from None
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "gone", "the client has gone")
        parts.append(message.get("body", b""))
        size, more = size + len(parts[-1]), message.get("more_body", False)
        if size > most:
            raise RefusedError(413, "too_long", f"the request has more than {most} bytes")
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives the body first."""
    rest = [{"type": "http.request", "body": body, "more_body": False}]

    async def found() -> Message:
        return rest.pop() if rest else await receive()

    return found


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError(400, "json", "the request has to be a JSON object")
    return found


def _images(asked: dict[str, Any]) -> int:
    found = asked.get("n", 1)
    if type(found) is not int or not 1 <= found <= MOST_IMAGES:
        raise RefusedError(400, "n", f"n has to be a number of images from 1 to {MOST_IMAGES}", param="n")
    return found


def _unlock(asked: dict[str, Any]) -> Any:
    found = asked.get("unlock", [])
    if found == "auto":
        return found
    names = isinstance(found, list) and all(isinstance(name, str) and len(name) <= MOST_NAME for name in found)
    if not names or len(found) > MOST_CONCEPTS:
        raise RefusedError(400, "unlock", 'unlock has to be "auto" or a short list of concepts', param="unlock")
    return tuple(found)
