"""``logsnr serve``: a model behind an API that enforces keys, and a page."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from logsnr.cli.console import Console, Flag, Model, check_writable
from logsnr.core.errors import InputError, MissingError
from logsnr.serve.config import Limits, ServeConfig

_NO_NAMES = ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::")  # noqa: S104
"""Addresses that are known anyway, or that nobody calls a server by."""


@dataclass(frozen=True, kw_only=True)
class Serve(Console):
    """Serve a model: an API in the OpenAI Images format that enforces keys, and a page. Tokens: `logsnr access`."""

    model: Model
    """An embedded world, a diffusers folder (OUT/public of `hide`), a .safetensors file or a hub id."""
    db: Path
    """The database of tokens, grants, budgets and audit; made where there is none, with a token for a first
    administrator in DB.admin-token."""
    name: str = ""
    """What clients call the model; without one, the last part of MODEL."""
    key_dir: Path | None = None
    """Folder of key files of `hide`, which --identity opens; SIGHUP reads it again."""
    identity: Path | None = None
    """The server's identity, of `key new-identity`, not sealed: recipients of the keys have to name it."""
    delta: tuple[Path, ...] = ()
    """Deltas of `erase`, which requests name by their folders' names."""
    host: str = "127.0.0.1"
    """Where to listen. Another than loopback should lie behind a server that speaks TLS."""
    port: int = 7860
    allow_host: tuple[str, ...] = ()
    """Further names by which browsers and clients call the server."""
    workers: int = 1
    """Processes, which share the database and nothing else."""
    runners: int = 0
    """Threads that sample in each worker, each with one core; 0: the cores of this machine, shared out."""
    queue: int = 128
    """Requests that wait at most in each worker; more are answered 503."""
    merge: int = 1
    """Images of compatible requests that go through the network together; from 2 on, last bits depend on the load."""
    max_images: int = 8
    """Images of one request."""
    max_steps: int = 100
    """Steps of one request."""
    limits: Limits = field(default_factory=Limits)
    log_prompts: Flag = False
    """Write prompts into the audit, in place of their keyed hashes."""

    def run(self) -> int:
        try:
            import fastapi  # noqa: F401
            import uvicorn
        except ModuleNotFoundError as error:
            raise MissingError(f"serving needs {error.name}: pip install 'logsnr[serve]'") from None
        from logsnr.core.config import to_dict
        from logsnr.serve.api import CONFIG, create_app
        from logsnr.serve.meters import SHARED

        if self.workers < 1 or not 0 <= self.port < 2**16:
            raise InputError("workers must be at least 1, and port one of 0 to 65535")
        config, port = self._config(), self._free_port()
        check_writable(self.db.parent)
        app = create_app(config)  # with several workers too: what is wrong is said once, and not by every one
        self._first_token()
        options: dict[str, Any] = {"host": self.host, "port": port, "log_level": "warning" if self.quiet else "info"}
        options |= {"proxy_headers": False, "server_header": False, "backlog": 512}
        options["timeout_graceful_shutdown"] = int(2 * config.max_seconds)
        print(f"serving {config.name} at http://{self.host}:{port}", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again, once all requests are finished
        if self.workers == 1:
            uvicorn.run(app, **options)
            return 0
        app.state.studio.engine.close()
        del app
        os.environ[CONFIG] = json.dumps(to_dict(config))
        with tempfile.TemporaryDirectory() as shared:
            os.environ[SHARED] = shared
            options |= {"workers": self.workers, "timeout_worker_healthcheck": 600}  # a model takes its time to load
            uvicorn.run("logsnr.serve.api:from_environment", factory=True, **options)
        return 0

    def _free_port(self) -> int:
        """The port, or for 0 one that is free.

        Raises:
            InputError: it is taken, or the address is not this machine's.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            with socket.socket(family) as found:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind((self.host, self.port))
                return int(found.getsockname()[1])
        except OSError as error:
            line = f"cannot listen at {self.host} port {self.port}: {error.strerror or error}"
            raise InputError(f"{line}; choose another --port or --host") from None

    def _config(self) -> ServeConfig:
        own = () if self.host in _NO_NAMES else (self.host,)
        return ServeConfig(
            model=self.model,
            name=self.name,
            database=self.db,
            key_dir=self.key_dir,
            identity=self.identity,
            deltas=self.delta,
            runners=self.runners or max(1, (os.cpu_count() or 1) // self.workers),
            queue=self.queue,
            merge=self.merge,
            max_images=self.max_images,
            max_steps=self.max_steps,
            hosts=(*ServeConfig.hosts, *own, *self.allow_host),
            log_prompts=self.log_prompts,
            limits=self.limits,
        )

    def _first_token(self) -> None:
        """Where no administrator is, one is made, and the token written for the eyes of who runs the server."""
        from logsnr.core.artifact import write_file
        from logsnr.serve.store import Store

        place = self.db.with_name(f"{self.db.name}.admin-token")
        if Store(self.db).first_admin(lambda token: write_file(place, token + "\n", private=True)):
            self.say(f"the first administrator's token is in {place}: keep it to yourself")
