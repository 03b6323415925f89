"""The gate alone: what passes, what the inner application hears of it, and what broken clients meet."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from logsnr.serve.config import Limits
from logsnr.serve.gate import GENERATIONS, Gate
from logsnr.serve.store import Decision, Store

BY = Decision("test")


class Inner:
    """An application that keeps what it heard, and answers with a status."""

    def __init__(self, status: int = 200):
        self.status, self.heard = status, list[tuple[Any, bytes]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        self.heard.append((scope, message["body"]))
        if self.status == 0:
            raise RuntimeError("broken inside")
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "s.db", Limits(images_per_day=10))


def run(gate: Gate, body: bytes | list[bytes], *headers: tuple[str, str], path: str = GENERATIONS, **scope: Any) -> Any:
    """Status, headers and body of an answer."""
    parts = [body] if isinstance(body, bytes) else body
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers]
    told = {"type": "http", "method": "POST", "path": path, "headers": pairs, "client": ("10.0.0.1", 5), **scope}
    asyncio.run(gate(told, receive, send))
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, answer


def wish(**asked: Any) -> bytes:
    return json.dumps({"prompt": "a boot", **asked}).encode()


def token_of(store: Store, *concepts: str) -> str:
    return store.add_key("member", "m", by=BY, concepts=concepts)[0]


def test_behind_the_gate_there_is_a_decision_and_no_token(store: Store) -> None:
    inner, token = Inner(), token_of(store, "boot")
    status, headers, _ = run(Gate(inner, store), wish(unlock=["boot"]), ("authorization", f"Bearer {token}"))
    assert status == 200
    scope, body = inner.heard[0]
    decision = scope["state"]["decision"]
    assert decision.concepts == ("boot",)
    assert headers["x-request-id"] == decision.request
    assert token not in repr(scope)
    assert 0 <= json.loads(body)["seed"] < 2**32, "and the seed that the audit names"
    assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()


def test_the_audit_names_the_seed_that_is_used_and_not_the_prompt(store: Store) -> None:
    inner, token = Inner(), token_of(store, "boot")
    for options in ({}, {"log_prompts": True}):
        gate = Gate(inner, store, told={"model": "abc"}, **options)
        run(gate, wish(unlock=["boot"]), ("authorization", f"Bearer {token}"))
    hashed, plain = [line["event"] for line in store.trail()][-2:]
    assert [hashed["seed"], plain["seed"]] == [json.loads(body)["seed"] for _, body in inner.heard]
    assert "a boot" not in json.dumps(hashed)
    assert hashed["prompt_hash"] == store.hashed("a boot")
    assert hashed["model"] == "abc"
    assert plain["prompt"] == "a boot"


def test_an_image_that_was_unlocked_and_not_made_has_a_second_line(store: Store) -> None:
    token = token_of(store, "boot")
    assert run(Gate(Inner(503), store), wish(unlock=["boot"]), ("authorization", f"Bearer {token}"))[0] == 503
    first, second = [line["event"] for line in store.trail()][-2:]
    assert (first["decision"], second["decision"], second["status"]) == ("unlocked", "not_made", 503)
    assert first["request"] == second["request"]


def test_auto_unlocks_and_writes_down_what_has_a_key(store: Store) -> None:
    inner, token = Inner(), token_of(store, "boot", "bag")
    gate = Gate(inner, store, valid=lambda concepts: tuple(name for name in concepts if name == "bag"))
    assert run(gate, wish(unlock="auto"), ("authorization", f"Bearer {token}"))[0] == 200
    assert inner.heard[0][0]["state"]["decision"].concepts == ("bag",)
    assert [line["event"] for line in store.trail()][-1]["concepts"] == ["bag"]


@pytest.mark.parametrize("path", ["/lab/v1/images/generations", GENERATIONS])
def test_a_mounted_application_is_gated_too(path: str, store: Store) -> None:
    inner, token = Inner(), token_of(store, "boot")
    bearer = ("authorization", f"Bearer {token}")
    assert run(Gate(inner, store), wish(unlock=["bag"]), bearer, path=path, root_path="/lab")[0] == 403
    assert run(Gate(inner, store), wish(unlock=["boot"]), bearer, path=path, root_path="/lab")[0] == 200
    assert inner.heard[0][0]["state"]["decision"].images == 1


def test_a_seed_that_is_null_is_none(store: Store) -> None:
    inner, token = Inner(), token_of(store, "boot")
    body = wish(unlock=["boot"], seed=None, n=None, size=None)
    assert run(Gate(inner, store), body, ("authorization", f"Bearer {token}"))[0] == 200
    heard = json.loads(inner.heard[0][1])
    assert [line["event"] for line in store.trail()][-1]["seed"] == heard["seed"]
    assert "size" not in heard


def test_neighbours_of_ipv6_share_their_limits(tmp_path: Path) -> None:
    gate = Gate(Inner(), Store(tmp_path / "six.db", Limits(anonymous_per_minute=2)))
    found = [run(gate, wish(), client=(address, 1))[0] for address in ("2001:db8::1", "2001:db8::2", "2001:db8::3")]
    assert found == [200, 200, 429]
    assert run(gate, wish(), client=("2001:db8:1::1", 1))[0] == 200


def test_what_a_body_says_twice_is_what_the_gate_decided(store: Store) -> None:
    inner, token = Inner(), token_of(store)
    body = b'{"prompt": "x", "unlock": ["boot"], "unlock": []}'
    assert run(Gate(inner, store), body, ("authorization", f"Bearer {token}"))[0] == 200
    assert inner.heard[0][1].count(b"unlock") == 1
    assert inner.heard[0][0]["state"]["decision"].concepts == ()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Basic abc")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "Bearer a b")], 401),
        ([("authorization", f"Bearer {'x' * 201}")], 401),
        ([("authorization", "bearer lsnr_nonsense")], 401),
        ([], 200),
    ],
)
def test_a_header_that_is_no_token_is_never_passed_over(headers: Any, status: int, store: Store) -> None:
    inner = Inner()
    found, told, _ = run(Gate(inner, store), wish(), *headers)
    assert found == status
    assert ("www-authenticate" in told) == (status == 401)
    assert bool(inner.heard) == (status == 200)


def test_two_tokens_are_none(store: Store) -> None:
    token = token_of(store, "boot")
    pair = ("authorization", f"Bearer {token}")
    assert run(Gate(Inner(), store), wish(), pair, pair)[0] == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b"{", 400),
        (b"[" * 50_000, 400),
        (b'{"n": 1' + b"0" * 5000 + b"}", 400),
        (b"\xff\xfe", 400),
        (wish(n=0), 400),
        (wish(n=True), 400),
        (wish(n="4"), 400),
        (wish(n=65), 400),
        (wish(unlock="all"), 400),
        (wish(unlock=[["boot"]]), 400),
        (wish(unlock={"boot": 1}), 400),
        (wish(unlock=["x" * 101]), 400),
        (wish(unlock=["x"] * 17), 400),
        (b'{"prompt": "\\ud800", "unlock": "auto"}', 200),
        (b" " * 70_000, 413),
        ([b" " * 60_000, b" " * 60_000], 413),
    ],
)
def test_a_body_that_cannot_be_decided_on_is_refused(body: Any, status: int, store: Store) -> None:
    inner = Inner()
    token = token_of(store, "boot")
    found, _, answer = run(Gate(inner, store), body, ("authorization", f"Bearer {token}"))
    assert found == status, answer
    assert bool(inner.heard) == (status == 200)
    if status != 200:
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_does_not_arrive_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logsnr.serve.gate._SECONDS", 0.2)

    async def slow() -> Any:
        await asyncio.sleep(5)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": GENERATIONS, "headers": [], "client": None}
    asyncio.run(Gate(Inner(), store)(scope, slow, send))
    assert sent[0]["status"] == 408


def test_other_paths_pass_with_what_their_token_is(store: Store) -> None:
    inner = Inner()
    token = token_of(store)
    assert run(Gate(inner, store), b"", path="/v1/models", method="GET")[0] == 200
    bearer = ("authorization", f"Bearer {token}")
    assert run(Gate(inner, store), b"", bearer, path="/v1/keys", method="GET")[0] == 200
    assert [scope["state"]["decision"].role for scope, _ in inner.heard] == [None, "member"]
    assert run(Gate(inner, store), b"", ("authorization", "Bearer no"), path="/healthz", method="GET")[0] == 401


def test_sockets_are_refused(store: Store) -> None:
    inner = Inner()
    assert run(Gate(inner, store), b"", type="websocket")[0] == 404
    assert not inner.heard


@pytest.mark.parametrize("status", [0, 400, 500, 503])
def test_images_that_were_not_made_are_not_spent(status: int, store: Store) -> None:
    gate = Gate(Inner(status), store)
    for _ in range(3):
        found, headers, answer = run(gate, wish(n=8))
        assert found == (status or 500)
        assert "x-request-id" in headers, "an error has the headers of every answer"
        assert status or json.loads(answer)["error"]["code"] == "broken"
    if not status:
        assert b'logsnr_requests_total{status="500"} 3.0' in gate.meters.text()
    good = Gate(Inner(), store)
    assert run(good, wish(n=8))[0] == 200
    found, headers, _ = run(good, wish(n=8))
    assert (found, "retry-after" in headers) == (429, True)


def test_where_nothing_can_be_written_nothing_is_unlocked_and_hidden_images_go_on(store: Store, tmp_path: Path) -> None:
    inner, token = Inner(), token_of(store, "boot")
    with sqlite3.connect(tmp_path / "s.db") as raw:
        for table in ("audit", "rates"):
            raw.execute(f"CREATE TRIGGER full_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END")
    gate, bearer = Gate(inner, store), ("authorization", f"Bearer {token}")
    for body in (wish(unlock=["boot"]), wish(unlock="auto"), wish()):
        found, headers, answer = run(gate, body, bearer)
        assert (found, json.loads(answer)["error"]["code"], "retry-after" in headers) == (503, "no_audit", True)
    assert run(gate, wish(unlock=["boot"]))[0] == 503
    assert run(gate, b"", bearer, path="/v1/keys", method="GET")[0] == 503
    assert not inner.heard
    assert run(gate, wish())[0] == 200
    assert inner.heard[0][0]["state"]["decision"].concepts == ()
    assert b"logsnr_audit_failures_total 6.0" in gate.meters.text()


def test_answers_carry_headers_that_keep_browsers_safe(store: Store) -> None:
    for path, body in ((GENERATIONS, b"no"), ("/", b"")):
        headers = run(Gate(Inner(), store), body, path=path)[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in headers["content-security-policy"]
