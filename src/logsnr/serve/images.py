"""The route that makes images, at once or as a stream of events in the form of the OpenAI API."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from torch import Tensor

from logsnr.core.config import to_dict
from logsnr.serve.engine import Job
from logsnr.serve.errors import RefusedError, as_refusal
from logsnr.serve.gate import GENERATIONS
from logsnr.serve.pictures import to_png
from logsnr.serve.requests import ImageRequest, ImageResponse
from logsnr.serve.rights import Everyone
from logsnr.serve.studio import Studio
from logsnr.solvers.sample import Samples

UNLOCKED = "x-concepts-unlocked"
_LOG = logging.getLogger(__name__)


def generations(studio: Studio) -> APIRouter:
    """The route over a studio."""
    routes = APIRouter()

    @routes.post(GENERATIONS, summary="Images of a prompt", responses={200: {"model": ImageResponse}})
    async def generate(asked: ImageRequest, request: Request, decision: Everyone) -> Response:
        job = await asyncio.to_thread(studio.job, asked, decision)
        headers = {UNLOCKED: quoted(job.concepts)}
        if asked.stream:
            events = Events(studio, replace(job, previews=asked.partial_images))
            return StreamingResponse(events.read(), media_type="text/event-stream", headers=headers)
        studio.engine.submit(job)
        made = await _unless_gone(job, request)
        return JSONResponse(await asyncio.to_thread(answer, studio, job, made), headers=headers)

    return routes


def quoted(concepts: tuple[str, ...]) -> str:
    """Names as a header can carry them."""
    return ",".join(quote(name, safe=" ") for name in concepts)


def answer(studio: Studio, job: Job, made: Samples) -> dict[str, Any]:
    """What the client reads."""
    data = [
        {"b64_json": _base64(to_png(image, _settings(studio, job, seed, made.nfe))), "seed": seed}
        for seed, image in zip(job.seeds, made.images, strict=True)
    ]
    studio.meters.images.labels(str(bool(job.concepts)).lower()).inc(len(data))
    cost = {"nfe": made.nfe, "network_evaluations": made.network_evaluations}
    return {"created": int(time.time()), "data": data, "output_format": "png", "size": studio.size, **cost}


def _settings(studio: Studio, job: Job, seed: int, nfe: int) -> dict[str, Any]:
    told = {"prompt": job.prompt, "seed": seed, "steps": nfe, "size": studio.size, "model": studio.name}
    told |= {"delta": job.delta} if job.delta else {}
    return {**told, "sampling": to_dict(job.config), "fingerprint": studio.fingerprint}


async def _unless_gone(job: Job, request: Request) -> Samples:
    """The finished images; a client that goes away, or a server that has to stop, calls the work off.

    Raises:
        RefusedError: 499, the client has gone.
    """
    done = asyncio.wrap_future(job.done)
    try:
        while not done.done():
            await asyncio.wait([done], timeout=0.25)
            if not done.done() and await request.is_disconnected():
                raise RefusedError(499, "gone", "the client has gone")
        return done.result()
    finally:
        job.cancelled.set()


class Events:
    """Pictures on the way, and then each image, as server-sent events; what goes wrong is one of them too.

    Raises:
        RefusedError: 503, the job finds no place.
    """

    def __init__(self, studio: Studio, job: Job):
        self.studio, self.loop = studio, asyncio.get_running_loop()
        self.found = asyncio.Queue[dict[str, Any]]()
        self.job = replace(job, preview=self._preview)
        studio.engine.submit(self.job)

    def _preview(self, number: int, images: Tensor) -> None:
        """From the runner's thread into the queue; of several images the first."""
        told = {"partial_image_index": number, "b64_json": _base64(to_png(images[0]))}
        self.loop.call_soon_threadsafe(self.found.put_nowait, told)

    async def read(self) -> AsyncIterator[str]:
        """The events; whoever stops reading calls the work off."""
        finished = asyncio.ensure_future(asyncio.wrap_future(self.job.done))
        try:
            async for told in self._until(finished):
                yield _event("image_generation.partial_image", told)
            made = await asyncio.to_thread(answer, self.studio, self.job, finished.result())
            shared = {name: value for name, value in made.items() if name not in ("created", "data")}
            for index, part in enumerate(made["data"]):
                told = {"created_at": made["created"], "index": index, **part, **shared}
                yield _event("image_generation.completed", told)
        except Exception as error:
            if not isinstance(error, RefusedError):
                _LOG.error("a stream failed: %s", type(error).__name__)
            yield _event("error", as_refusal(error).body())
        finally:
            self.job.cancelled.set()

    async def _until(self, finished: asyncio.Future[Samples]) -> AsyncIterator[dict[str, Any]]:
        """What comes into the queue until the work is finished and nothing is left there."""
        while not finished.done() or not self.found.empty():
            waiting = asyncio.ensure_future(self.found.get())
            await asyncio.wait([waiting, finished], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield waiting.result()
            else:
                waiting.cancel()


def _event(kind: str, told: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **told})}\n\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
