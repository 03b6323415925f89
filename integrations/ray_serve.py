"""logsnr's server as a Ray Serve deployment: the same application, its gate and its page, in replicas of one host.

    serve.run(deployment(ServeConfig(model="hidden/public", database=Path("serve.db"), ...), replicas=2))

Replicas share the database and nothing else, as the workers of `logsnr serve` do; SQLite keeps them on one host. Use
this where Ray runs already, for its autoscaling and restarts; otherwise `logsnr serve --workers N` does the same.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from logsnr.serve.api import create_app
from logsnr.serve.config import ServeConfig


def deployment(config: ServeConfig, *, replicas: int = 1, cores: float = 1.0, **options: Any) -> serve.Application:
    """The server as an application of Ray Serve; ``cores`` is what one replica gets, further options are Ray's."""

    def build() -> FastAPI:
        return create_app(config)

    ingress = serve.ingress(build)(type("Server", (), {}))
    given = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": cores}, **options}
    return serve.deployment(name="logsnr", **given)(ingress).bind()
