"""The route that makes images: it samples what the gate's decision allows, and nothing else."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import torch
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from logsnr.core.config import to_dict
from logsnr.core.errors import LogsnrError
from logsnr.models.pipeline import denoiser_of, latent_shape
from logsnr.schedules.origins import is_few_step
from logsnr.serve.engine import Engine, Job
from logsnr.serve.errors import RefusedError
from logsnr.serve.gate import GENERATIONS
from logsnr.serve.keyring import Keyring
from logsnr.serve.meters import Meters
from logsnr.serve.pictures import to_png
from logsnr.serve.requests import ImageRequest
from logsnr.serve.rights import Everyone
from logsnr.serve.store import Decision
from logsnr.solvers.sample import Samples, make_run

UNLOCKED = "x-concepts-unlocked"


@dataclass
class Studio:
    """What the route samples with; pipelines of the engine: the model by ``name``, deltas and exact keys by theirs."""

    name: str
    engine: Engine
    keyring: Keyring
    meters: Meters
    fingerprint: str
    max_images: int
    max_steps: int

    @property
    def defaults(self) -> tuple[int, float]:
        """Steps and guidance where a request says none."""
        few = is_few_step(self.engine.pipes[self.name].scheduler.config)
        return (2, 1.0) if few else (20, 2.0)

    @property
    def size(self) -> str:
        """The model's own size, width x height."""
        pipe = self.engine.pipes[self.name]
        _, height, width = latent_shape(pipe)
        factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        return f"{width * factor}x{height * factor}"

    def job(self, asked: ImageRequest, decision: Decision) -> Job:
        """The work that a request is.

        Raises:
            RefusedError, InputError: it cannot be done, or not with these rights.
        """
        self._check(asked)
        steps, guidance = self.defaults
        concepts = decision.concepts if asked.unlock != "auto" else self.keyring.valid(decision.concepts)
        unlocked = self.keyring.unlocked(concepts)
        model = asked.delta or unlocked.exact or self.name
        if asked.delta and concepts:
            raise RefusedError(400, "delta", "keys belong to the model without a delta: leave one out", param="delta")
        first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        seeds, config = [(first + place) % 2**32 for place in range(asked.n)], asked.sampling(steps, guidance)
        pipe = self.engine.pipes[model]
        make_run(pipe, denoiser_of(pipe).schedule, config)  # what is impossible is said now, and takes no place
        return Job(model, asked.prompt, seeds, config, unlocked.prompt, concepts=concepts)

    def _check(self, asked: ImageRequest) -> None:
        if asked.model not in (None, self.name):
            raise RefusedError(404, "model", f"this server has the model {self.name}", param="model")
        if asked.delta is not None and asked.delta not in self.engine.pipes:
            raise RefusedError(404, "delta", "this server knows no such delta", param="delta")
        if asked.size not in ("auto", self.size):
            raise RefusedError(400, "size", f"the size is auto, or {self.size}", param="size")
        if asked.n > self.max_images:
            raise RefusedError(400, "n", f"a request has at most {self.max_images} images", param="n")
        if (asked.num_inference_steps or 0) > self.max_steps:
            raise RefusedError(
                400, "steps", f"a request has at most {self.max_steps} steps", param="num_inference_steps"
            )

    def answer(self, job: Job, made: Samples) -> dict[str, Any]:
        """What the client reads."""
        data = [
            {"b64_json": _base64(to_png(image, self._settings(job, seed, made.nfe))), "seed": seed}
            for seed, image in zip(job.seeds, made.images, strict=True)
        ]
        self.meters.images.labels(str(bool(job.concepts)).lower()).inc(len(data))
        return {
            "created": int(time.time()),
            "data": data,
            "output_format": "png",
            "size": self.size,
            "nfe": made.nfe,
            "network_evaluations": made.network_evaluations,
        }

    def _settings(self, job: Job, seed: int, nfe: int) -> dict[str, Any]:
        told = {"prompt": job.prompt, "seed": seed, "steps": nfe, "size": self.size, "model": self.name}
        if job.model != self.name and job.model not in self.keyring.exact():
            told["delta"] = job.model
        return {**told, "sampling": to_dict(job.config), "fingerprint": self.fingerprint}


def generations(studio: Studio) -> APIRouter:
    """The route over a studio."""
    routes = APIRouter()

    @routes.post(GENERATIONS, summary="Images of a prompt")
    async def generate(asked: ImageRequest, request: Request, decision: Everyone) -> Response:
        job = studio.job(asked, decision)
        headers = {UNLOCKED: ",".join(_header(name) for name in job.concepts)}
        if asked.stream:
            events = Events(studio, replace(job, previews=asked.partial_images))
            return StreamingResponse(events.read(), media_type="text/event-stream", headers=headers)
        studio.engine.submit(job)
        made = await _unless_gone(job, request)
        return JSONResponse(await asyncio.to_thread(studio.answer, job, made), headers=headers)

    return routes


async def _unless_gone(job: Job, request: Request) -> Samples:
    """The finished images; a client that goes away cancels its work.

    Raises:
        RefusedError: 499, it has gone.
    """
    done = asyncio.wrap_future(job.done)
    while not done.done():
        await asyncio.wait([done], timeout=0.25)
        if not done.done() and await request.is_disconnected():
            job.cancelled.set()
            raise RefusedError(499, "gone", "the client has gone")
    return done.result()


class Events:
    """Pictures on the way, and then the answer, as server-sent events; what goes wrong is one of them too.

    Raises:
        RefusedError: 503, the job finds no place.
    """

    def __init__(self, studio: Studio, job: Job):
        self.studio, self.loop = studio, asyncio.get_running_loop()
        self.found = asyncio.Queue[tuple[str, dict[str, Any]]]()
        self.job = replace(job, preview=self._preview)
        studio.engine.submit(self.job)

    def _preview(self, number: int, images: torch.Tensor) -> None:
        """From the runner's thread into the queue."""
        told = {"partial_image_index": number, "b64_json": _base64(to_png(images[0]))}
        self.loop.call_soon_threadsafe(self.found.put_nowait, ("partial_image", told))

    async def read(self) -> AsyncIterator[str]:
        """The events; whoever stops reading cancels the work."""
        finished = asyncio.ensure_future(asyncio.wrap_future(self.job.done))
        try:
            async for kind, told in self._until(finished):
                yield _event(kind, told)
            answer = await asyncio.to_thread(self.studio.answer, self.job, finished.result())
            yield _event("completed", answer)
        except LogsnrError as error:
            refusal = error if isinstance(error, RefusedError) else RefusedError(400, "input", str(error))
            yield _event("error", refusal.body())
        finally:
            self.job.cancelled.set()

    async def _until(self, finished: asyncio.Future[Samples]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """What comes into the queue until the work is finished and nothing is left there."""
        while not finished.done() or not self.found.empty():
            waiting = asyncio.ensure_future(self.found.get())
            await asyncio.wait([waiting, finished], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                yield waiting.result()
            else:
                waiting.cancel()


def _event(kind: str, told: dict[str, Any]) -> str:
    name = kind if kind == "error" else f"image_generation.{kind}"
    return f"event: {name}\ndata: {json.dumps({'type': name, **told})}\n\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _header(text: str) -> str:
    """A concept's name as a header can carry it."""
    return quote(text, safe=" ")
