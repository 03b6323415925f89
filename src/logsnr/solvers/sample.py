"""Sampling: a generator over steps for any denoiser, and ``sample`` for whole pipelines."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level, Prediction, Solver
from logsnr.models.pipeline import Pipeline, decode_latents, denoiser_of, encode_prompts, latent_shape
from logsnr.schedules.grids import GRIDS, check_grid, scheduler_grid
from logsnr.schedules.prediction import check_start
from logsnr.schedules.schedule import Schedule
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import start_noise, step_noise


@dataclass(frozen=True)
class Samples:
    """What ``sample`` made: images (n, channels, height, width) in [-1, 1], their latents, and what it cost."""

    images: Tensor
    latents: Tensor
    levels: list[Level]
    nfe: int
    network_evaluations: int
    seconds: float


@dataclass(frozen=True)
class _Conditioned:
    """A denoiser with its conditioning filled in, as solvers call it."""

    denoiser: Denoiser
    cond: Any

    def __call__(self, xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        return self.denoiser(xt, level, self.cond)


@torch.no_grad()
def sample_steps(
    denoiser: Denoiser,
    x: Tensor,
    grid: Sequence[Level],
    solver: Solver,
    *,
    cond: Any = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Tensor]:
    """Yield the sample after each step of the grid, starting from x (n, ...) at its first level.

    ``seeds`` (one a row) give every step its noise; a deterministic solver needs none.
    """
    conditioned = _Conditioned(denoiser, cond)
    memory = None
    for index, (here, there) in enumerate(pairwise(grid)):
        noise = step_noise(seeds, x.shape[1:], index).to(x) if seeds is not None and there.sigma else None
        x, memory = solver(conditioned, x, here, there, noise, memory)
        yield x


def make_grid(schedule: Schedule, scheduler_config: Any, config: SampleConfig) -> list[Level]:
    """The grid that a sampling configuration names; "scheduler" is the model's own, an SNRScheduler's grid included."""
    name = scheduler_config.get("grid", "scheduler") if config.grid == "scheduler" else config.grid
    if name == "scheduler":
        return scheduler_grid(schedule, scheduler_config, config.steps)
    return GRIDS[name](schedule, config.steps)


def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    config: SampleConfig | None = None,
    batch_size: int = 64,
) -> Samples:
    """Images of a diffusers pipeline, one a seed, by any schedule, grid and rho.

    ``prompt`` is one text for all seeds or one a seed. The image of a seed does not depend on the other seeds.

    Raises:
        InputError: no seeds, or prompts and seeds differ in number.
    """
    config = config or SampleConfig()
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    if not seeds or len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds do not match: give one prompt, or one a seed")
    start = time.perf_counter()
    denoiser = denoiser_of(pipe, guidance_scale=config.guidance_scale, replay=True)
    grid = check_grid(make_grid(denoiser.schedule, pipe.scheduler.config, config))
    check_start(denoiser.kind, grid[0])
    solver = Exponential(config.order, config.rho, config.variant)
    shape, parts = latent_shape(pipe), []
    with torch.inference_mode():
        for first in range(0, len(seeds), batch_size):
            rows = list(seeds[first : first + batch_size])
            guided = config.guidance_scale > 1
            cond = encode_prompts(pipe, prompts[first : first + batch_size], negative=config.negative, guided=guided)
            x = start_noise(rows, shape, grid[0]).to(pipe.device)
            steps = sample_steps(denoiser, x, grid, solver, cond=cond, seeds=rows if config.rho else None)
            x = deque(steps, maxlen=1).pop()
            parts.append((x, decode_latents(pipe, x)))
    latents, images = (torch.cat(column) for column in zip(*parts, strict=True))
    nfe = len(grid) - 1
    return Samples(images, latents, grid, nfe, denoiser.network_evaluations, time.perf_counter() - start)
