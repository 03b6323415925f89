"""What a server samples with: the model, its deltas, and what the opened keys bring back."""

from __future__ import annotations

import copy
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from logsnr.hiding.reveal import put_back
from logsnr.models.delta import Delta
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, component_of, denoiser_of, latent_shape, network_of
from logsnr.serve.config import ServeConfig
from logsnr.serve.engine import Engine, Job
from logsnr.serve.errors import RefusedError
from logsnr.serve.keyring import Keyring, open_keyring
from logsnr.serve.meters import Meters
from logsnr.serve.requests import ImageRequest
from logsnr.serve.store import Decision
from logsnr.solvers.consistency import usual_sampling
from logsnr.solvers.sample import make_run
from logsnr.worlds.load import load

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """The keys that are in force, and a pipeline with the original weights of each exact one, by the key's name."""

    keyring: Keyring = field(default_factory=Keyring)
    exact: dict[str, Pipeline] = field(default_factory=dict)


class Studio:
    """A model ready to be served; one that is not ``strict`` unlocks nothing where a key cannot be used.

    Raises:
        LogsnrError: the model, a delta or a key cannot be used.
    """

    def __init__(self, config: ServeConfig, meters: Meters, *, strict: bool = True):
        self.config, self.meters, self.name = config, meters, config.name
        self.pipe = load(config.model)
        self.fingerprint, self.size = fingerprint(network_of(self.pipe)), _size(self.pipe)
        self.opened, self.deltas = Opened(), dict[str, Pipeline]()
        if strict:
            self.opened = self._open()
        else:
            self.reopen()
        for folder in config.deltas:
            self.deltas[folder.name] = _beside(self.pipe)
            Delta.from_pretrained(folder).merge(self.deltas[folder.name])
        usual = usual_sampling(self.pipe.scheduler.config)
        self.steps, self.guidance = usual.steps, usual.guidance_scale
        self.engine = Engine(
            runners=config.runners or os.cpu_count() or 1,
            queue=config.queue,
            merge=config.merge,
            max_seconds=config.max_seconds,
            meters=meters,
        )

    def _open(self) -> Opened:
        keyring = open_keyring(self.config.key_dir, self.config.identity, network_of(self.pipe))
        exact = {}
        for name, key in keyring.exact().items():
            exact[name] = _beside(self.pipe)
            put_back(exact[name], key.originals)
        return Opened(keyring, exact)

    def reopen(self) -> None:
        """Read the folder of keys again; if one of them cannot be used, nothing is unlocked until all can."""
        try:
            self.opened = self._open()
        except Exception as error:
            _LOG.error("keys cannot be opened again, nothing is unlocked: %s", error)
            self.opened = Opened()

    def valid(self, concepts: Sequence[str]) -> tuple[str, ...]:
        """Those of these concepts that can be unlocked here now."""
        return self.opened.keyring.valid(concepts)

    def job(self, asked: ImageRequest, decision: Decision) -> Job:
        """The work that a request is; what its decision was not made for is refused, however it came here.

        Raises:
            RefusedError, InputError: it cannot be done, or not with these rights.
        """
        named = set(asked.unlock) if asked.unlock != "auto" else set(decision.concepts)
        if named != set(decision.concepts) or decision.images != asked.n:
            raise RefusedError(503, "no_gate", "keys cannot be enforced on this way in")
        self._check(asked, decision)
        opened = self.opened
        unlocked = opened.keyring.unlocked(decision.concepts)
        pipe = self.deltas[asked.delta] if asked.delta else self.pipe
        if unlocked.exact:
            pipe = opened.exact[unlocked.exact]
        config = asked.sampling(self.steps, self.guidance)
        make_run(pipe, denoiser_of(pipe).schedule, config)  # what is impossible is said now, and takes no place
        first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        seeds = [(first + place) % 2**32 for place in range(asked.n)]
        return Job(pipe, asked.prompt, seeds, config, unlocked.prompt, delta=asked.delta, concepts=decision.concepts)

    def _check(self, asked: ImageRequest, decision: Decision) -> None:
        most, steps = self.config.max_images, self.config.max_steps
        if asked.model not in (None, self.name):
            raise RefusedError(404, "model", f"this server has the model {self.name}", param="model")
        if asked.delta is not None and asked.delta not in self.deltas:
            raise RefusedError(404, "delta", "this server knows no such delta", param="delta")
        if asked.delta and decision.concepts:
            raise RefusedError(400, "delta", "keys belong to the model without a delta: leave one out", param="delta")
        if asked.size not in ("auto", self.size):
            raise RefusedError(400, "size", f"the size is auto, or {self.size}", param="size")
        if asked.n > most:
            raise RefusedError(400, "n", f"a request has at most {most} images", param="n")
        if (asked.num_inference_steps or 0) > steps:
            raise RefusedError(400, "steps", f"a request has at most {steps} steps", param="num_inference_steps")
        if asked.solver and Path(asked.solver).exists():
            raise RefusedError(400, "solver", "only tables that a world ships are taken", param="solver")


def _size(pipe: Pipeline) -> str:
    """The model's own size, width x height."""
    _, height, width = latent_shape(pipe)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return f"{width * factor}x{height * factor}"


def _beside(pipe: Pipeline) -> Pipeline:
    """A pipeline with a network and text encoders of its own, and all else shared."""
    found = copy.copy(pipe)
    names = [component_of(pipe), *(name for name in pipe.components if name.startswith("text_encoder"))]
    for name in names:
        if getattr(pipe, name) is not None:
            setattr(found, name, copy.deepcopy(getattr(pipe, name)))
    return found
