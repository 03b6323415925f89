"""The server as people run it: its process killed and started again, many workers, another engine behind the gate."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import called, result
from served import GENERATIONS, PROMPT, bearer, hidden_model, images

from logsnr.serve.background import in_background
from logsnr.serve.store import Decision, Store
from logsnr.serve.upstream import Target, guarded

STEPS = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hidden_model(tmp_path_factory.mktemp("hidden"))


@dataclass
class Running:
    """A server's process."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def ask(self, token: str | None = None, **wish: Any) -> httpx2.Response:
        body = {"prompt": PROMPT, "seed": 3, **STEPS, **wish}
        return httpx2.post(f"{self.url}{GENERATIONS}", json=body, headers=bearer(token), timeout=60, trust_env=False)

    def get(self, path: str, token: str | None = None) -> httpx2.Response:
        return httpx2.get(f"{self.url}{path}", headers=bearer(token), timeout=60, trust_env=False)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def running(folder: Path, database: Path, *options: str) -> AbstractContextManager[Running]:
    """`logsnr serve` of the hidden model with its key, until the block ends."""
    keys = ("--key-dir", str(folder / "keys"), "--identity", str(folder / "identity"))
    return subprocess_of(str(folder / "public"), database, "--name", "fashion", *keys, *options)


@contextmanager
def subprocess_of(model: str, database: Path, *options: str) -> Iterator[Running]:
    """`logsnr serve` on loopback until the block ends."""
    port, log = free_port(), database.with_suffix(".log")
    command = [sys.executable, "-m", "logsnr", "serve", model, "--db", str(database)]
    with log.open("w") as written:
        process = subprocess.Popen(
            [*command, "--port", str(port), *options], stdout=written, stderr=written, text=True, start_new_session=True
        )
    found = Running(process, f"http://127.0.0.1:{port}", log)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                if found.get("/readyz").status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.2)
        yield found
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def add_member(capsys: pytest.CaptureFixture[str], database: Path, place: Path) -> tuple[str, str]:
    """A member's token and key, made by the command line."""
    told = ("--db", str(database), "--label", "me", "--concept", "sandal", "--token-file", str(place))
    row = result(capsys, "access", "add-key", *told)
    assert "token" not in row
    return place.read_text().strip(), row["id"]


def test_a_killed_server_has_lost_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "s.db"
    with running(folder, database) as server:
        token, key = add_member(capsys, database, tmp_path / "token")
        first = images(server.ask(token, unlock=["sandal"]))
        before = Store(database).head()
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(server.ask, token, unlock=["sandal"], num_inference_steps=50) for _ in range(8)]
            time.sleep(1)
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
            lost = sum(bool(each.exception()) for each in asked)
    assert lost > 0, "requests were running"
    store = Store(database)
    number, _ = store.head()
    assert number > before[0]
    assert store.verify(before) is None
    with running(folder, database) as server:
        assert images(server.ask(token, unlock=["sandal"])) == first
        admin = (tmp_path / "s.db.admin-token").read_text().strip()
        assert [row["id"] for row in server.get("/v1/keys", admin).json()["data"]][1:] == [key]
        assert result(capsys, "access", "verify", "--db", str(database))["lines"] == number + 1
        result(capsys, "access", "revoke", "--db", str(database), "--key", key)
        assert server.ask(token, unlock=["sandal"]).status_code == 401
        log = server.log.read_text()
    assert token not in log
    assert admin not in log


def test_a_signal_reads_the_keys_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(folder, tmp_path / "s.db", "--quiet") as server:
        token, _ = add_member(capsys, tmp_path / "s.db", tmp_path / "token")
        key, aside = folder / "keys" / "sandal.key", folder / "aside.key"
        for there, status in ((False, 403), (True, 200)):
            (key.rename(aside) if not there else aside.rename(key))
            server.process.send_signal(signal.SIGHUP)
            for _ in range(100):
                if server.ask(token, unlock=["sandal"]).status_code == status:
                    break
                time.sleep(0.1)
            assert server.ask(token, unlock=["sandal"]).status_code == status
        assert server.ask().status_code == 200


def test_an_asked_end_finishes_running_requests(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(folder, tmp_path / "s.db", "--quiet") as server:
        token, _ = add_member(capsys, tmp_path / "s.db", tmp_path / "token")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(server.ask, token, num_inference_steps=40, seed=k) for k in range(4)]
            time.sleep(0.7)
            assert server.end(signal.SIGTERM) == 0
            assert [each.result().status_code for each in asked] == [200] * 4


def test_workers_share_tokens_limits_and_numbers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = tmp_path / "s.db"
    options = ("--workers", "2", "--limits.anonymous-per-minute", "9", "--limits.failures", "1000")
    with running(folder, database, *options) as server:
        token, key = add_member(capsys, database, tmp_path / "token")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda k: server.ask(token, unlock=["sandal"], seed=k % 4), range(16)))
            assert [each.status_code for each in found] == [200] * 16
            assert len({images(each)[0] for each in found}) == 4
            statuses = [each.status_code for each in pool.map(lambda _: server.ask(), range(12))]
        assert sorted(statuses) == [200] * 9 + [429] * 3
        assert 'logsnr_images_total{unlocked="true"} 16.0' in server.get("/metrics").text
        (folder / "keys" / "sandal.key").rename(folder / "aside.key")
        server.process.send_signal(signal.SIGHUP)
        for _ in range(120):  # workers are replaced one after another
            if {server.ask(token, unlock=["sandal"]).status_code for _ in range(8)} == {403}:
                break
            time.sleep(0.5)
        (folder / "aside.key").rename(folder / "keys" / "sandal.key")
        assert server.ask(token, unlock=["sandal"]).status_code == 403, "in every worker"
        result(capsys, "access", "revoke", "--db", str(database), "--key", key)
        assert {server.ask(token).status_code for _ in range(6)} == {401}
        assert Store(database).verify() is None
        assert server.end(signal.SIGTERM) == 0


def test_slow_and_broken_clients_hold_up_nobody(folder: Path, tmp_path: Path) -> None:
    with running(folder, tmp_path / "s.db") as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        open_ones = [socket.create_connection(address) for _ in range(40)]
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for number, each in enumerate(open_ones):
            each.sendall((head + "Content-Length: 100\r\n\r\n{" if number % 2 else head).encode())
        body = json.dumps({"prompt": "x", "num_inference_steps": 100, "n": 8}).encode()
        for _ in range(8):  # clients that ask for much and hang up
            with socket.create_connection(address) as gone:
                gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                time.sleep(0.05)
        begun = time.monotonic()
        assert server.ask().status_code == 200
        assert time.monotonic() - begun < 20, "work that nobody waits for is called off"
        for each in open_ones:
            each.close()
        assert server.get("/healthz").status_code == 200


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = called(capsys, "serve", "fashion", "--db", str(tmp_path / "s.db"), "--port", port)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot listen" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--db", "{tmp}/s.db", "--key-dir", "{tmp}"), "say both key_dir and identity"),
        (("--db", "{tmp}/s.db", "--key-dir", "{tmp}/k", "--identity", "{tmp}/i"), "no folder of keys"),
        (("--db", "{tmp}/s.db", "--workers", "0"), "workers must be at least 1"),
        (("--db", "/proc/s.db"), "cannot be written"),
        (("--db", "{tmp}/s.db", "--limits.images-per-day", "0"), "at least 1"),
    ],
)
def test_bad_options_are_one_line(
    options: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = [option.format(tmp=tmp_path) for option in options]
    code, out, err = called(capsys, "serve", "fashion", *told)
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_access_works_on_the_database_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = tmp_path / "s.db"
    code, _, err = called(capsys, "access", "keys", "--db", str(database))
    assert (code, "no database" in err) == (2, True)
    Store(database)
    _, key = add_member(capsys, database, tmp_path / "token")
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    told = ("--db", str(database))
    (grant,) = result(capsys, "access", "grant", *told, "--key", key, "--concept", "boot")["grants"]
    assert [row["concept"] for row in result(capsys, "access", "grants", *told)["grants"]] == ["sandal", "boot"]
    result(capsys, "access", "withdraw", *told, "--key", grant["id"])
    result(capsys, "access", "rotate", *told, "--key", key, "--token-file", str(tmp_path / "second"))
    assert (tmp_path / "second").read_text() != (tmp_path / "token").read_text()
    lines = result(capsys, "access", "audit", *told)["lines"]
    assert [line["event"]["decision"] for line in lines][-2:] == ["withdrawn", "key_rotated"]
    found = result(capsys, "access", "verify", *told)
    anchor = f"{found['lines'] + 1}:{found['digest']}"
    for wrong in (
        ("verify", "--anchor", anchor),
        ("verify", "--anchor", "x"),
        ("rotate", "--key", key, "--token-file", str(tmp_path / "token")),
        ("add-key",),
        ("grant", "--key", key),
        ("grant", "--key", "nobody", "--concept", "x"),
        ("revoke",),
        ("add-key", "--not-after", "soon", "--token-file", str(tmp_path / "third")),
    ):
        code, _, err = called(capsys, "access", wrong[0], *told, *wrong[1:])
        assert (code, err.count("\n")) == (2, 1), err
    assert not (tmp_path / "third").exists()


def test_the_gate_stands_before_another_engine(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "gate.db")
    token, _ = store.add_key("member", "", by=Decision("test"), concepts=("sandal", "boot"))
    original = subprocess_of("fashion", tmp_path / "o.db")
    with running(folder, tmp_path / "s.db") as engine, original as other:
        public, unlocked = Target(engine.url, "fashion"), {"sandal": Target(other.url, "fashion")}
        app = guarded(store, public=public, unlocked=unlocked)
        with in_background(app) as url:
            gate = Running(engine.process, url, engine.log)
            assert images(gate.ask(model="original")) == images(engine.ask()), "whatever name is asked for"
            assert images(gate.ask(token)) == images(engine.ask())
            told = gate.ask(token, unlock=["sandal"])
            assert images(told) == images(other.ask()) != images(engine.ask())
            assert told.headers["x-concepts-unlocked"] == "sandal"
            assert images(gate.ask(token, unlock="auto")) == images(other.ask())
            assert gate.ask(token, unlock=["boot"]).json()["error"]["code"] == "no_model"
            for more in ({"lora": {"local_path": "/srv"}}, {"seed": float("nan")}, {"num_inference_steps": 10**6}):
                content = json.dumps({"prompt": PROMPT, **more})
                kind = {"content-type": "application/json"}
                answer = httpx2.post(f"{gate.url}{GENERATIONS}", content=content, headers=kind, trust_env=False)
                assert answer.status_code == 400, more
            assert gate.ask("lsnr_bad").status_code == 401
            assert gate.get("/v1/keys", token).status_code == 404
            assert engine.end(signal.SIGKILL)
            assert gate.ask().status_code == 503
    assert [line["event"]["decision"] for line in store.trail()].count("unlocked") == 3
