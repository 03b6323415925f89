"""Serve a model on loopback, give a member a token, and ask for an image as a program does.

``python examples/serve.py [OUT]`` writes OUT/image.png, whose settings any program can read, and prints the trail.
"""

from __future__ import annotations

import base64
import sys
import threading
import time
from pathlib import Path

import httpx2
import uvicorn
from PIL import Image

from logsnr.core.artifact import write_file
from logsnr.serve.api import create_app
from logsnr.serve.config import ServeConfig
from logsnr.serve.store import Decision


def main(out: Path) -> None:
    """Start, ask, stop."""
    out.mkdir(parents=True, exist_ok=True)
    app = create_app(ServeConfig(model="fashion", database=out / "serve.db", runners=1))
    token, key = app.state.store.add_key("member", "Ann", by=Decision("example"), concepts=("sandal",))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wish = {"prompt": "a photo of a sneaker", "seed": 7, "num_inference_steps": 8}
        bearer = {"authorization": f"Bearer {token}"}
        answer = httpx2.post(f"{url}/v1/images/generations", json=wish, headers=bearer, timeout=60, trust_env=False)
        write_file(out / "image.png", base64.b64decode(answer.json()["data"][0]["b64_json"]))
    finally:
        server.should_exit = True
        thread.join()
    with Image.open(out / "image.png") as picture:
        print(picture.text["parameters"])
    for line in app.state.store.trail():
        print(line["number"], line["event"]["decision"], line["event"].get("concepts", ""))
    print(f"key {key['id']}: the trail is {'sound' if app.state.store.verify() is None else 'broken'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/serve"))
