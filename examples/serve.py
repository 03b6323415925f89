"""Serve a model on loopback, give a member a token, and ask for an image as a program does.

``python examples/serve.py [OUT]`` writes OUT/image.png, whose settings any program can read, and prints the trail.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

import httpx2
from PIL import Image

from logsnr.core.artifact import write_file
from logsnr.serve.api import create_app
from logsnr.serve.background import in_background
from logsnr.serve.config import ServeConfig
from logsnr.serve.store import Decision


def main(out: Path) -> None:
    """Start, ask, stop."""
    out.mkdir(parents=True, exist_ok=True)
    app = create_app(ServeConfig(model="fashion", database=out / "serve.db", runners=1))
    token, key = app.state.store.add_key("member", "Ann", by=Decision("example"), concepts=("sandal",))
    with in_background(app) as url:
        wish = {"prompt": "a photo of a sneaker", "seed": 7, "num_inference_steps": 8}
        bearer = {"authorization": f"Bearer {token}"}
        answer = httpx2.post(f"{url}/v1/images/generations", json=wish, headers=bearer, timeout=60, trust_env=False)
        write_file(out / "image.png", base64.b64decode(answer.json()["data"][0]["b64_json"]))
    with Image.open(out / "image.png") as picture:
        print(picture.text["parameters"])
    for line in app.state.store.trail():
        print(line["number"], line["event"]["decision"], line["event"].get("concepts", ""))
    print(f"key {key['id']}: the trail is {'sound' if app.state.store.verify() is None else 'broken'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/serve"))
