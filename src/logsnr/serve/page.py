"""The page, three files without any other's help, and what it asks the server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from logsnr.models.pipeline import denoiser_of
from logsnr.serve.errors import RefusedError
from logsnr.serve.requests import Grid
from logsnr.serve.rights import Everyone
from logsnr.serve.studio import Studio
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import make_run

_FILES = Path(__file__).parent / "static"
File = Literal["page.js", "page.css"]


def pages(studio: Studio) -> APIRouter:
    """The routes over a studio."""
    routes = APIRouter()

    @routes.get("/", summary="The page", response_class=FileResponse)
    def page(_: Everyone) -> FileResponse:
        return FileResponse(_FILES / "page.html")

    @routes.get("/static/{name}", summary="Its script and style", response_class=FileResponse)
    def file(name: File, _: Everyone) -> FileResponse:
        return FileResponse(_FILES / name)

    @routes.get("/v1/models", summary="The model, its own size and its deltas")
    def models(_: Everyone) -> dict[str, Any]:
        told = {"size": studio.size, "steps": studio.steps, "guidance_scale": studio.guidance}
        told |= {"max_steps": studio.config.max_steps, "deltas": list(studio.deltas)}
        return {"object": "list", "data": [{"id": studio.name, "object": "model", **told}]}

    @routes.get("/v1/schedule", summary="The noise levels of a run")
    def schedule(
        _: Everyone, steps: Annotated[int, Query(ge=1, le=1000)] = 20, grid: Grid = "scheduler"
    ) -> dict[str, Any]:
        most, pipe = studio.config.max_steps, studio.pipe
        if steps > most:
            raise RefusedError(400, "steps", f"a request has at most {most} steps", param="steps")
        levels, _solver = make_run(pipe, denoiser_of(pipe).schedule, SampleConfig(steps=steps, grid=grid))
        rows = [{"t": at.t, "alpha": at.alpha, "sigma": at.sigma, "log_snr": at.log_snr} for at in levels]
        return {"levels": [{name: v if math.isfinite(v) else None for name, v in row.items()} for row in rows]}

    return routes
