"""How a server runs; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What one token, or one address without a token, may ask for."""

    requests_per_minute: int = 600
    """Requests with one token."""
    anonymous_per_minute: int = 120
    """Requests for images without a token, from one address."""
    images_per_day: int = 20_000
    """Images, with one token unless it has a number of its own, or from one address; days are those of UTC."""
    failures: int = 5
    """Bad tokens from one address, or concepts that one token does not unlock, that are forgiven; then 1 s has to pass
    before the next try, and twice as long each time."""
    body_bytes: int = 65_536
    """Bytes of a request at most."""

    def __post_init__(self) -> None:
        if min(self.requests_per_minute, self.anonymous_per_minute, self.images_per_day, self.body_bytes) < 1:
            raise InputError("limits of requests, images and bytes must be at least 1")
        if self.failures < 0:
            raise InputError(f"failures is {self.failures}: say how many are forgiven, from 0 on")


@dataclass(frozen=True)
class ServeConfig:
    """A server's model, keys and state; its limits."""

    model: str
    database: Path
    """Tokens, grants, audit and budgets; the key of its signatures stands beside it."""
    name: str = ""
    """What clients call the model; without one, the last part of ``model``."""
    key_dir: Path | None = None
    """Folder of key files, each opened once by the identity."""
    identity: Path | None = None
    deltas: tuple[Path, ...] = ()
    """What ``erase`` made; a request names one by its folder's name."""
    runners: int = 0
    """Threads that sample, each with one core; 0: as many as there are cores for each worker."""
    queue: int = 128
    """Requests that wait at most; more are answered 503."""
    merge: int = 1
    """Images of compatible requests that go through the network together; from 2 on, last bits depend on the load."""
    max_images: int = 8
    """Images of one request."""
    max_steps: int = 100
    """Steps of one request."""
    max_seconds: float = 120.0
    """How long a request may wait for its turn."""
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names by which the server may be called; others are refused, so that no foreign page reaches it."""
    log_prompts: bool = False
    """Write prompts into the audit, in place of their keyed hashes."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if min(self.queue, self.merge, self.max_images, self.max_steps) < 1 or self.runners < 0:
            raise InputError("queue, merge, max_images and max_steps must be at least 1, and runners not negative")
        if self.max_seconds <= 0:
            raise InputError(f"max_seconds is {self.max_seconds}: requests need some time")
        if bool(self.key_dir) != bool(self.identity):
            raise InputError("key files need the identity that opens them: say both key_dir and identity, or neither")
        if not self.name:
            object.__setattr__(self, "name", Path(self.model).name)
        names = [self.name, *(folder.name for folder in self.deltas)]
        if len(set(names)) != len(names):
            raise InputError("model and deltas need different names, of their folders: rename one")
