"""The server: routes for images, rights and health behind one gate, and the page."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from logsnr.core.config import from_dict
from logsnr.core.errors import LogsnrError
from logsnr.hiding.reveal import put_back
from logsnr.models.delta import Delta
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, component_of, network_of
from logsnr.serve.admin import administration
from logsnr.serve.config import ServeConfig
from logsnr.serve.engine import Engine
from logsnr.serve.errors import RefusedError
from logsnr.serve.gate import Gate
from logsnr.serve.images import Studio, generations
from logsnr.serve.keyring import Keyring, open_keyring
from logsnr.serve.meters import Meters
from logsnr.serve.page import pages
from logsnr.serve.rights import Everyone
from logsnr.serve.store import Store
from logsnr.worlds.load import load

CONFIG = "LOGSNR_SERVE"
"""The variable by which a worker gets its configuration: names of files, and no secret."""
_LOG = logging.getLogger(__name__)


def from_environment() -> FastAPI:
    """The server of one worker, as the variable says."""
    return create_app(from_dict(ServeConfig, json.loads(os.environ[CONFIG])))


def create_app(config: ServeConfig) -> FastAPI:
    """The server, its model loaded and its keys opened.

    Raises:
        LogsnrError: the model, a delta, a key or the database cannot be used.
    """
    store, meters = Store(config.database, config.limits), Meters()
    studio = make_studio(config, meters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with suppress(NotImplementedError, RuntimeError, ValueError):  # outside the main thread there are no signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reopen_keys, studio, config)
        yield
        await asyncio.to_thread(studio.engine.close)

    app = FastAPI(title="logsnr", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    app.state.store, app.state.studio = store, studio
    app.state.routers = [generations(studio), administration(store), health(studio, meters), pages(studio)]
    for routes in app.state.routers:
        app.include_router(routes)
    _answer_errors(app)
    told = {"model": studio.fingerprint[:16]}
    app.add_middleware(Gate, store=store, meters=meters, told=told, log_prompts=config.log_prompts)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(config.hosts), www_redirect=False)
    return app


def make_studio(config: ServeConfig, meters: Meters) -> Studio:
    """The model, what deltas and exact keys make of it, and the threads that sample them."""
    pipe = load(config.model)
    network = network_of(pipe)
    keyring = open_keyring(config.key_dir, config.identity, network)
    pipes = {config.name: pipe}
    for folder in config.deltas:
        pipes[folder.name] = _beside(pipe)
        Delta.from_pretrained(folder).merge(pipes[folder.name])
    pipes |= _of_exact_keys(pipe, keyring)
    options = {"queue": config.queue, "merge": config.merge, "max_seconds": config.max_seconds}
    engine = Engine(pipes, runners=config.runners or os.cpu_count() or 1, **options)
    caps = {"max_images": config.max_images, "max_steps": config.max_steps}
    return Studio(config.name, engine, keyring, meters, fingerprint(network), **caps)


def reopen_keys(studio: Studio, config: ServeConfig) -> None:
    """Read the folder of keys again; if one of them cannot be used, nothing is unlocked until all can."""
    pipe = studio.engine.pipes[studio.name]
    try:
        keyring = open_keyring(config.key_dir, config.identity, network_of(pipe))
        studio.engine.pipes.update(_of_exact_keys(pipe, keyring))
    except LogsnrError as error:
        _LOG.error("keys cannot be opened again, nothing is unlocked: %s", error)
        keyring = Keyring()
    studio.keyring = keyring


def _of_exact_keys(pipe: Pipeline, keyring: Keyring) -> dict[str, Pipeline]:
    """A pipeline with the original weights of each exact key, by the key's name."""
    found = {}
    for name, key in keyring.exact().items():
        found[name] = _beside(pipe)
        put_back(found[name], key.originals)
    return found


def _beside(pipe: Pipeline) -> Pipeline:
    """A pipeline with a network and text encoders of its own, and all else shared."""
    found = copy.copy(pipe)
    names = [component_of(pipe), *(name for name in pipe.components if name.startswith("text_encoder"))]
    for name in names:
        if getattr(pipe, name) is not None:
            setattr(found, name, copy.deepcopy(getattr(pipe, name)))
    return found


def health(studio: Studio, meters: Meters) -> APIRouter:
    """Whether the server lives, is ready, and its numbers."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Whether the process lives")
    def alive(_: Everyone) -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz", summary="Whether requests are taken")
    def ready(_: Everyone) -> dict[str, str]:
        if not studio.engine.ready:
            raise RefusedError(503, "not_ready", "the server takes no requests now", retry_after=5)
        return {"status": "ready"}

    @routes.get("/metrics", summary="Numbers for Prometheus")
    def metrics(_: Everyone) -> Response:
        meters.waiting.set(studio.engine.waiting)
        meters.running.set(studio.engine.running)
        return Response(meters.text(), media_type="text/plain; version=0.0.4")

    return routes


def _answer_errors(app: FastAPI) -> None:
    """Every error in one form; what was given is never sent back."""

    def answer(refusal: RefusedError) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())

    @app.exception_handler(LogsnrError)
    async def refused(_: Request, error: LogsnrError) -> JSONResponse:
        return answer(error if isinstance(error, RefusedError) else RefusedError(400, "input", str(error)))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        places = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(places)[:100] or None
        return answer(RefusedError(400, "input", f"{param or 'the request'}: {first['msg']}", param=param))

    @app.exception_handler(HTTPException)
    async def missing(_: Request, error: HTTPException) -> JSONResponse:
        return answer(RefusedError(error.status_code, "http", str(error.detail)))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("a request failed: %s", type(error).__name__)
        return answer(RefusedError(500, "broken", "something went wrong here"))
