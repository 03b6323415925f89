"""The server as a Ray Serve deployment, on one host and loopback alone; `make test-ray` has ray, CI has not."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from served import GENERATIONS, PROMPT, bearer, config, hidden_model, images

from logsnr.serve.store import Decision, Store

ROOT = Path(__file__).parents[2]
PORT = 8765


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray", reason="ray is not installed: make test-ray has it")
    monkeypatch.syspath_prepend(str(ROOT / "integrations"))
    from ray import serve
    from ray_serve import deployment

    runtime = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", runtime_env={"env_vars": runtime})
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    told = config(hidden_model(tmp_path), tmp_path / "s.db", runners=1)
    serve.run(deployment(told, replicas=2, cores=0.5))
    yield f"http://127.0.0.1:{PORT}"
    serve.shutdown()
    ray.shutdown()


def test_replicas_enforce_the_same_keys(url: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    token, row = store.add_key("member", "", by=Decision("test"), concepts=("sandal",))

    def ask(token: str | None = None, **wish: object) -> httpx2.Response:
        body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 2, **wish}
        return httpx2.post(f"{url}{GENERATIONS}", json=body, headers=bearer(token), timeout=120, trust_env=False)

    hidden = {images(ask())[0] for _ in range(6)}
    revealed = {images(ask(token, unlock=["sandal"]))[0] for _ in range(6)}
    assert len(hidden) == len(revealed) == 1
    assert hidden != revealed
    assert ask(None, unlock=["sandal"]).status_code == 401
    store.revoke(row["id"], by=Decision("test"))
    assert {ask(token).status_code for _ in range(6)} == {401}
    assert store.verify() is None
