"""A server over a real hidden model: fashion without sandals, whose shipped key an identity opens."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

import logsnr
from logsnr.cli.showcase_hiding import PASSPHRASE
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import Secret, new_identity
from logsnr.models.delta import Delta
from logsnr.serve.api import create_app
from logsnr.serve.config import Limits, ServeConfig
from logsnr.worlds.load import load_world

GENERATIONS = "/v1/images/generations"
PROMPT = "a photo of a sandal"


def hidden_model(folder: Path) -> Path:
    """FOLDER/public, FOLDER/keys/sandal.key and the FOLDER/identity that opens it."""
    shipped = load_world("fashion").edits / "hidden" / "sandal"
    pipe = logsnr.load("fashion")
    Delta.from_pretrained(shipped).merge(pipe)
    pipe.save_pretrained(folder / "public")
    identity, recipient = new_identity()
    (folder / "identity").write_text(identity.reveal())
    (folder / "recipient").write_text(recipient)
    (folder / "keys").mkdir()
    KeyFile.open(shipped / "key.age", passphrase=Secret(PASSPHRASE)).save(folder / "keys" / "sandal.key", [recipient])
    return folder


def config(folder: Path, database: Path, **changes: Any) -> ServeConfig:
    """How the hidden model is served in tests: few steps, and limits that no test meets by chance."""
    plain = ServeConfig(
        model=str(folder / "public"),
        name="fashion",
        database=database,
        key_dir=folder / "keys",
        identity=folder / "identity",
        runners=2,
        hosts=("testserver", "127.0.0.1", "localhost"),
        limits=Limits(anonymous_per_minute=10_000, requests_per_minute=10_000, failures=10_000, images_per_day=10**6),
    )
    return replace(plain, **changes)


@dataclass
class Served:
    """A running application, its client, and tokens of each role; the member may unlock sandals."""

    app: FastAPI
    client: TestClient
    admin: str
    member: str
    auditor: str

    def ask(self, token: str | None = None, **wish: Any) -> Any:
        """The answer to a request for images of two steps."""
        body = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 2, **wish}
        return self.client.post(GENERATIONS, json=body, headers=bearer(token))

    def call(self, method: str, path: str, token: str | None = None, body: Any = None) -> Any:
        return self.client.request(method, path, headers=bearer(token), json=body)


def bearer(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


@contextmanager
def serving(told: ServeConfig) -> Iterator[Served]:
    """The application with its client, closed in the end."""
    app = create_app(told)
    store = app.state.store
    with TestClient(app, raise_server_exceptions=False) as client:
        admin = store.first_admin()
        made = {}
        for role, concepts in (("member", ["sandal"]), ("auditor", [])):
            asked = {"role": role, "label": role, "concepts": concepts}
            made[role] = client.post("/v1/keys", json=asked, headers=bearer(admin)).json()["token"]
        yield Served(app, client, admin, made["member"], made["auditor"])
    store.engine.dispose()


def images(answer: Any) -> list[bytes]:
    """The PNG files of an answer."""
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(part["b64_json"]) for part in answer.json()["data"]]


def picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def events(text: str) -> list[dict[str, Any]]:
    """The server-sent events of an answer."""
    return [json.loads(part.split("data: ", 1)[1]) for part in text.strip().split("\n\n")]
