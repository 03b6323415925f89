"""The server: routes for images, rights and health behind one gate, and the page."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from logsnr.core.config import from_dict
from logsnr.core.errors import LogsnrError
from logsnr.serve.admin import administration
from logsnr.serve.config import ServeConfig
from logsnr.serve.errors import RefusedError, as_refusal
from logsnr.serve.gate import Gate
from logsnr.serve.images import generations
from logsnr.serve.meters import Meters
from logsnr.serve.page import pages
from logsnr.serve.rights import Everyone
from logsnr.serve.schema import describe
from logsnr.serve.store import Store
from logsnr.serve.studio import Studio

CONFIG = "LOGSNR_SERVE"
"""The variable by which a worker gets its configuration: names of files, and no secret."""


def from_environment() -> FastAPI:
    """The server of one worker, as the variable says; all was well when the first of them started."""
    return create_app(from_dict(ServeConfig, json.loads(os.environ[CONFIG])), strict=False)


def create_app(config: ServeConfig, *, strict: bool = True) -> FastAPI:
    """The server, its model loaded and its keys opened; ``strict`` as in ``Studio``.

    Raises:
        LogsnrError: the model, a delta, a key or the database cannot be used.
    """
    meters = Meters()
    studio = Studio(config, meters, strict=strict)  # first: where the model or a key is refused, nothing is written
    store = Store(config.database, config.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        with suppress(NotImplementedError, RuntimeError, ValueError):  # outside the main thread there are no signals
            loop.add_signal_handler(signal.SIGHUP, lambda: loop.run_in_executor(None, studio.reopen))
        yield
        await asyncio.to_thread(studio.engine.close)

    app = FastAPI(title="logsnr", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.store, app.state.studio = store, studio
    app.state.routers = [generations(studio), administration(store, studio), health(studio), pages(studio)]
    for routes in app.state.routers:
        app.include_router(routes)
    _answer_errors(app)
    describe(app)
    told = {"model": studio.fingerprint[:16]}
    options = {"meters": meters, "told": told, "log_prompts": config.log_prompts, "valid": studio.valid}
    app.add_middleware(Gate, store=store, **options)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(config.hosts), www_redirect=False)
    return app


def health(studio: Studio) -> APIRouter:
    """Whether the server lives, is ready, and its numbers; none of them waits for a thread."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Whether the process lives")
    async def alive(_: Everyone) -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz", summary="Whether requests are taken")
    async def ready(_: Everyone) -> dict[str, str]:
        if not studio.engine.ready:
            raise RefusedError(503, "not_ready", "the server takes no requests now", retry_after=5)
        return {"status": "ready"}

    @routes.get("/metrics", summary="Numbers for Prometheus")
    async def metrics(_: Everyone) -> Response:
        return Response(studio.meters.text(), media_type="text/plain; version=0.0.4")

    return routes


def _answer_errors(app: FastAPI) -> None:
    """Every error in one form; what was given is never sent back."""

    def answer(refusal: RefusedError) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        places = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(places)[:100] or None
        return answer(RefusedError(400, "input", f"{param or 'the request'}: {first['msg']}", param=param))

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return answer(RefusedError(error.status_code, "http", str(error.detail)))

    @app.exception_handler(LogsnrError)
    @app.exception_handler(SQLAlchemyError)
    async def refused(_: Request, error: Exception) -> JSONResponse:
        return answer(as_refusal(error))
