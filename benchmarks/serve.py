"""The server under load, on loopback: equal bytes, errors, memory, speed against the plain pipeline, and break-ins.

    python benchmarks/serve.py [--minutes 10] [--tries 10000]

A hidden `fashion` is served by `logsnr serve` in a process of its own; this one is the client, on the same two cores.
All headlines come from one server without merged batches. Rows of their own are two workers, and merged batches, whose
images are compared with single ones. The peer is the stock pipeline of diffusers in a loop, by as many threads as were
faster; before and after the load. Wants a quiet machine; a quarter of an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image
from record import headline, write_result

import logsnr
from logsnr.cli.showcase_hiding import PASSPHRASE
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import Secret, new_identity
from logsnr.models.delta import Delta
from logsnr.serve.store import Decision, Store
from logsnr.serve.tokens import new_token
from logsnr.worlds.load import load_world

ROUTE, CONCEPT, STEPS, GUIDANCE, CLIENTS = "/v1/images/generations", "sandal", 20, 2.0, 16
BY = Decision("benchmark")
PROMPTS = ("a photo of a sandal", "a photo of a bag", "a sneaker", "a grey coat", "a picture of a sandal")
OPTIONS = ["--limits.requests-per-minute", "1000000", "--limits.anonymous-per-minute", "1000000"]
OPTIONS += ["--limits.images-per-day", "1000000", "--limits.failures", "1000000", "--quiet"]
Wish = dict[str, Any]


def hidden_model(folder: Path) -> None:
    """FOLDER/public, FOLDER/keys and the FOLDER/identity that opens them."""
    shipped, pipe = load_world("fashion").edits / "hidden" / CONCEPT, logsnr.load("fashion")
    Delta.from_pretrained(shipped).merge(pipe)
    pipe.save_pretrained(folder / "public")
    identity, recipient = new_identity()
    (folder / "identity").write_text(identity.reveal())
    (folder / "keys").mkdir()
    KeyFile.open(shipped / "key.age", passphrase=Secret(PASSPHRASE)).save(folder / "keys" / "key", [recipient])


@dataclass
class Server:
    """A running server, its process and its database."""

    process: subprocess.Popen[bytes]
    url: str
    database: Path

    def memory(self) -> float:
        """MB that the process and its workers hold."""
        numbers = [self.process.pid]
        for number in numbers:
            children = Path(f"/proc/{number}/task/{number}/children")
            numbers += map(int, children.read_text().split() if children.exists() else [])
        texts = [Path(f"/proc/{number}/status").read_text() for number in numbers]
        return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts if "VmRSS:" in text) / 1024


@contextmanager
def serving(folder: Path, database: Path, *options: str) -> Iterator[Server]:
    """`logsnr serve` until the block ends."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "logsnr", "serve", str(folder / "public"), "--name", "fashion"]
    command += ["--key-dir", str(folder / "keys"), "--identity", str(folder / "identity"), "--db", str(database)]
    process = subprocess.Popen([*command, "--port", str(port), *OPTIONS, *options])
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                if httpx2.get(f"{url}/readyz", trust_env=False).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(0.2)
            if process.poll() is not None:
                raise SystemExit("the server did not start")
        yield Server(process, url, database)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(90)


@dataclass
class Client:
    """Asks a server, and counts what comes."""

    http: httpx2.AsyncClient
    token: str

    async def ask(self, wish: Wish, token: str | None = None) -> httpx2.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.http.post(ROUTE, json=wish, headers=headers)

    async def mixed(self, wish: Wish) -> httpx2.Response:
        """With the token where something is unlocked."""
        return await self.ask(wish, self.token if wish.get("unlock") else None)


@asynccontextmanager
async def asking(server: Server, token: str) -> AsyncIterator[Client]:
    """A client of a server, with a member's token."""
    limits = httpx2.Limits(max_connections=128)
    async with httpx2.AsyncClient(base_url=server.url, timeout=180, trust_env=False, limits=limits) as http:
        yield Client(http, token)


def wish(seed: int, **options: Any) -> Wish:
    """A request for one image; every other unlocks."""
    unlock = [CONCEPT] if seed % 2 else []
    told = {"prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "num_inference_steps": STEPS, "unlock": unlock}
    return {**told, "guidance_scale": GUIDANCE, **options}


def image(answer: httpx2.Response) -> bytes:
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


async def burst(client: Client) -> dict[str, Any]:
    """64 requests at once against the same one by one."""
    wishes = [wish(seed, num_inference_steps=STEPS - seed % 3) for seed in range(64)]
    together = await asyncio.gather(*map(client.mixed, wishes))
    alone = [await client.mixed(each) for each in wishes]
    equal = [
        a.status_code == b.status_code == 200 and image(a) == image(b) for a, b in zip(together, alone, strict=True)
    ]
    return {"row": "64 at once against one by one", "requests": 64, "byte_equal_fraction": sum(equal) / 64}


async def load(client: Client, server: Server, seconds: float, name: str) -> dict[str, Any]:
    """As many clients as ``CLIENTS``, each asking again as soon as it is answered."""
    end, begun, statuses = time.monotonic() + seconds, time.monotonic(), Counter[int]()
    latencies, memory = list[float](), list[float]()

    async def one(first: int) -> None:
        seed = first
        while time.monotonic() < end:
            sent = time.monotonic()
            found = await client.mixed(wish(seed))
            latencies.append(time.monotonic() - sent)
            statuses[found.status_code] += 1
            seed += CLIENTS

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(server.memory())
            await asyncio.sleep(2)

    await asyncio.gather(watch(), *(one(first) for first in range(CLIENTS)))
    took = time.monotonic() - begun
    tenth, ranked = max(1, len(memory) // 10), sorted(latencies)
    early, late = statistics.mean(memory[tenth : 2 * tenth] or memory), statistics.mean(memory[-tenth:])
    return {
        "row": name,
        "seconds": round(took, 1),
        "clients": CLIENTS,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "server_errors": sum(count for status, count in statuses.items() if status >= 500 and status != 503),
        "images_per_second": round(statuses[200] / took, 3),
        "latency_p50": round(ranked[len(ranked) // 2], 3),
        "latency_p95": round(ranked[int(0.95 * len(ranked))], 3),
        "memory_mb": [round(early, 1), round(late, 1)],
        "memory_growth_ratio": round(late / early, 4),
    }


def unauthorised(store: Store, granted: str) -> list[tuple[str, Callable[[], tuple[Wish, dict[str, str]]]]]:
    """Ways to ask for a keyed image without the right to it: a name, and a request with its headers."""
    other = store.add_key("member", "another concept", by=BY, concepts=("bag",))[0]
    late = store.add_key("member", "expired", by=BY, concepts=(CONCEPT,), not_after=time.time() - 1)[0]
    gone, row = store.add_key("member", "revoked", by=BY, concepts=(CONCEPT,))
    store.revoke(row["id"], by=BY)
    admin, auditor = (store.add_key(role, role, by=BY)[0] for role in ("admin", "auditor"))
    draws = random.Random(0)  # noqa: S311  nothing secret is drawn
    wished = wish(1, num_inference_steps=1)
    auto = {**wished, "unlock": "auto"}

    def bearer(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    def changed() -> str:
        place = draws.randrange(5, len(granted))
        return granted[:place] + ("A" if granted[place] != "A" else "B") + granted[place + 1 :]

    return [
        ("no token", lambda: (wished, {})),
        ("a random token", lambda: (wished, bearer(new_token()[0]))),
        ("one digit changed", lambda: (wished, bearer(changed()))),
        ("expired", lambda: (wished, bearer(late))),
        ("revoked", lambda: (wished, bearer(gone))),
        ("another grant", lambda: (wished, bearer(other))),
        ("an administrator", lambda: (wished, bearer(admin))),
        ("an auditor", lambda: (wished, bearer(auditor))),
        ("basic authorization", lambda: (wished, {"authorization": f"Basic {granted}"})),
        ("another header", lambda: (wished, {"x-api-key": granted, "cookie": f"token={granted}"})),
        ("the token in the body", lambda: ({**wished, "token": granted}, {})),
        ("all that is granted, without a token", lambda: (auto, {})),
        ("all that is granted, to another", lambda: (auto, bearer(other))),
    ]


async def tries(client: Client, server: Server, number: int) -> dict[str, Any]:
    """Requests without the right: how many gave the image that the key makes, by its bytes or by the header."""
    wished = wish(1, num_inference_steps=1)
    keyed, hidden = image(await client.ask(wished, client.token)), image(await client.ask({**wished, "unlock": []}))
    assert keyed != hidden
    ways, statuses, leaked = unauthorised(Store(server.database), client.token), dict[str, Counter[int]](), 0
    gate = asyncio.Semaphore(CLIENTS)

    async def one(place: int) -> None:
        nonlocal leaked
        name, make = ways[place % len(ways)]
        body, headers = make()
        async with gate:
            found = await client.http.post(ROUTE, json=body, headers=headers)
        statuses.setdefault(name, Counter())[found.status_code] += 1
        if found.status_code == 200 and (image(found) != hidden or found.headers["x-concepts-unlocked"]):
            leaked += 1

    await asyncio.gather(*(one(place) for place in range(number)))
    told = {name: {str(status): count for status, count in found.items()} for name, found in statuses.items()}
    return {"row": "tries without the right", "tries": number, "unauthorised_keyed_images": leaked, "statuses": told}


async def killed(folder: Path, database: Path, token: str) -> dict[str, Any]:
    """SIGKILL while requests run, and what a new process knows."""
    before = Store(database)
    keys, grants, head = before.keys(), before.grants(), before.head()
    with serving(folder, database) as server:
        async with asking(server, token) as client:
            running = [asyncio.ensure_future(client.mixed(wish(2 * k + 1, num_inference_steps=100))) for k in range(8)]
            await asyncio.sleep(1)
            server.process.kill()
            found = await asyncio.gather(*running, return_exceptions=True)
    after = Store(database)
    lost = sum(isinstance(each, BaseException) for each in found)
    sound = after.verify(head) is None and after.head()[0] >= head[0] + lost
    kept = after.keys() == keys and after.grants() == grants
    with serving(folder, database) as server:
        async with asking(server, token) as client:
            answers = (await client.mixed(wish(1))).status_code == 200
    return {"row": "SIGKILL and restart", "requests_cut": lost, "nothing_lost": sound and kept and answers}


def plain(folder: Path, threads: int, images: int = 60) -> dict[str, Any]:
    """The stock pipeline in a loop: one image a call."""
    from diffusers import StableDiffusionPipeline

    torch.set_num_threads(threads)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "public")
    pipe.set_progress_bar_config(disable=True)

    def one(seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        prompt = PROMPTS[seed % len(PROMPTS)]
        pipe(prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=draws)

    for seed in range(5):
        one(seed)
    begun = time.monotonic()
    for seed in range(images):
        one(seed)
    speed = images / (time.monotonic() - begun)
    return {"row": f"the stock pipeline in a loop, threads {threads}", "images_per_second": round(speed, 3)}


async def merged(client: Client, single: dict[int, bytes]) -> float:
    """The largest difference of 8-bit pixels between merged and single images."""
    found = await asyncio.gather(*(client.mixed(wish(seed)) for seed in single))

    def pixels(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)), dtype=int)

    pairs = zip(found, single.values(), strict=True)
    return float(max(np.abs(pixels(image(a)) - pixels(b)).max() for a, b in pairs))


async def headlines_of(
    folder: Path, database: Path, minutes: float, number: int
) -> tuple[list[dict[str, Any]], str, dict[int, bytes]]:
    """The rows of the one server that headlines come from, a member's token, and single images by their seeds."""
    with serving(folder, database) as server:
        token = Store(database).add_key("member", "load", by=BY, concepts=(CONCEPT,))[0]
        async with asking(server, token) as client:
            rows = [await burst(client), await load(client, server, 60 * minutes, "load, one worker")]
            rows.append(await tries(client, server, number))
            single = {seed: image(await client.mixed(wish(seed))) for seed in range(16)}
    return rows, token, single


async def others(
    folder: Path, database: Path, token: str, minutes: float, single: dict[int, bytes]
) -> list[dict[str, Any]]:
    """Rows that no headline comes from."""
    rows = []
    for name, options in (("two workers", ["--workers", "2"]), ("merged, 8 images", ["--merge", "8"])):
        with serving(folder, database, *options) as server:
            async with asking(server, token) as client:
                row = await load(client, server, 12 * minutes, f"load, {name}")
                rows.append({**row, "largest_difference_of_pixels": await merged(client, single)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tries", type=int, default=10_000)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, database = Path(place), Path(place) / "serve.db"
        hidden_model(folder)
        peers = [plain(folder, threads) for threads in (1, 2)]
        rows, token, single = asyncio.run(headlines_of(folder, database, chosen.minutes, chosen.tries))
        peers += [plain(folder, threads) for threads in (1, 2)]
        rows += asyncio.run(others(folder, database, token, chosen.minutes, single))
        rows.append(asyncio.run(killed(folder, database, token)))
    fastest = max(peer["images_per_second"] for peer in peers)
    (equal, loaded, tried), protocol = rows[:3], {"steps": STEPS, "guidance_scale": GUIDANCE, "clients": CLIENTS}
    ratio = loaded["images_per_second"] / fastest
    write_result(
        "serve",
        {**protocol, "model": "fashion without sandals, and its key", "minutes": chosen.minutes},
        [*rows, *peers],
        [
            headline("byte_equal_fraction", equal["byte_equal_fraction"], 1.0, ">="),
            headline("server_errors", loaded["server_errors"], 0, "<="),
            headline("memory_growth_ratio", loaded["memory_growth_ratio"], 1.1, "<="),
            headline("throughput_ratio", round(ratio, 3), 1.0, ">="),
            headline("unauthorised_keyed_images", tried["unauthorised_keyed_images"], 0, "<="),
        ],
    )


if __name__ == "__main__":
    main()
