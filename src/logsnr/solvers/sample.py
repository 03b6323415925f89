"""Sampling: a generator over steps for any denoiser, and ``sample`` for whole pipelines."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.steps import finish
from logsnr.core.types import Denoiser, Level, Prediction, Solver
from logsnr.models.architectures import is_distilled
from logsnr.models.fingerprint import fingerprint
from logsnr.models.guidance import SAFE, SafeGuidance
from logsnr.models.pipeline import (
    Pipeline,
    decode_latents,
    denoiser_of,
    encode_prompts,
    grid_options,
    latent_shape,
    network_of,
)
from logsnr.models.prompted import Prompt, prompted
from logsnr.schedules.grids import GRIDS
from logsnr.schedules.prediction import check_start
from logsnr.schedules.schedule import Schedule, warn_outside
from logsnr.schedules.scheduler_config import rule_of, scheduler_grid
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.consistency import ConsistencyStep, consistency_step, usual_sampling
from logsnr.solvers.exponential import Exponential, check_coarse
from logsnr.solvers.noise import start_noise, step_noise
from logsnr.solvers.scheduler import SNRScheduler
from logsnr.solvers.table import Tabulated, load_table


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


def make_grid(pipe: Pipeline, schedule: Schedule, config: SampleConfig) -> list[Level]:
    """The grid that a sampling configuration names; "scheduler" is the model's own, an SNRScheduler's grid included."""
    if config.grid != "scheduler":
        return GRIDS[config.grid](schedule, config.steps)
    scheduler, told = pipe.scheduler, grid_options(pipe, config.steps)
    if isinstance(scheduler, SNRScheduler):
        return scheduler.grid_of(config.steps, **(told if scheduler.config.grid == "scheduler" else {}))
    return scheduler_grid(scheduler, schedule, config.steps, **told)


def make_solver(config: SampleConfig) -> Exponential:
    """The solver that a sampling configuration names."""
    rho = config.rho if isinstance(config.rho, str | int | float) else list(config.rho)
    return Exponential(config.order, rho, config.variant, corrector=config.corrector)


def make_run(
    pipe: Pipeline, schedule: Schedule, config: SampleConfig
) -> tuple[list[Level], Exponential | Tabulated | ConsistencyStep]:
    """The levels and the solver of a sampling run; a solver table brings both, and a consistency model its solver.

    A high order on few steps of a grid that does not suit it is warned of.

    Raises:
        InputError: the table was made for another network or guidance, or there is one for a consistency model.
    """
    if step := consistency_step(pipe.scheduler.config):
        own = SampleConfig()
        names = ("solver", "rho", "corrector", "order", "variant", "grid")
        if wrong := [name for name in names if getattr(config, name) != getattr(own, name)]:
            raise InputError(f"a consistency model has levels and a solver of its own: drop {wrong[0]}")
        warn_of_guidance(pipe.scheduler.config.get("guidance"), config.guidance_scale)
        return make_grid(pipe, schedule, config), step
    if config.solver:
        table = load_table(config.solver)
        table.check_model(fingerprint(network_of(pipe)), config.guidance_scale, config.negative)
        levels = table.levels(schedule)
        warn_outside(schedule, levels)
        return levels, table.solver()
    grid, solver = make_grid(pipe, schedule, config), make_solver(config)
    rule = rule_of(pipe.scheduler.config) if config.grid == "scheduler" else config.grid
    check_coarse(solver.order, solver.linear, rule, config.steps)
    warn_outside(schedule, grid)
    return grid, solver


def warn_of_guidance(learned: Sequence[float] | None, scale: float) -> None:
    """Warn of a scale that a consistency model did not learn: its ``guidance`` is one, its own, or a range."""
    if learned and len(learned) == 1 and learned[0] > 1 < scale:
        warnings.warn(
            f"the network has learned guidance {learned[0]:g} as its own, and {scale:g} guides it once more: "
            "guidance_scale 1 takes it as it is",
            stacklevel=2,
        )
    elif learned and len(learned) > 1 and not learned[0] <= scale <= learned[-1]:
        warnings.warn(
            f"the network has learned guidance from {learned[0]:g} to {learned[-1]:g}, and is told {scale:g}: "
            "stay inside",
            stacklevel=2,
        )


def sample(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    latents: Tensor | None = None,
    key: Prompt | Sequence[Prompt | None] | None = None,
    config: SampleConfig | None = None,
    batch_size: int = 64,
) -> Samples:
    """Images of a diffusers pipeline, one a seed, by any schedule, grid and rho.

    ``prompt`` is one text for all seeds or one a seed. The image of a seed does not depend on the other seeds.
    ``latents`` (n, channels, height, width), one a seed, are the start in place of the noise of the seeds: samples at
    the first level of the run, as ``invert`` finds them. A ``key`` brings back what was hidden, in all images or, one a
    seed, in those that have one.

    Raises:
        InputError: no seeds, or prompts, seeds, latents and keys differ in number or shape.
        UnsupportedError: a negative prompt or safe guidance for a network that guides itself.
    """
    steps = sampling(pipe, prompt, seeds=seeds, latents=latents, key=key, config=config, batch_size=batch_size)
    return finish(steps)


@torch.inference_mode()
def sampling(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    latents: Tensor | None = None,
    key: Prompt | Sequence[Prompt | None] | None = None,
    config: SampleConfig | None = None,
    batch_size: int = 64,
) -> Generator[Tensor, None, Samples]:
    """``sample`` step by step: yields the latents of the batch at hand after each, and returns what ``sample`` does."""
    config = config or usual_sampling(pipe.scheduler.config)
    prompts = [prompt] * len(seeds) if isinstance(prompt, str) else list(prompt)
    if not seeds or len(prompts) != len(seeds):
        raise InputError(f"{len(prompts)} prompts and {len(seeds)} seeds do not match: give one prompt, or one a seed")
    keys = list(key) if isinstance(key, Sequence) else [key] * len(seeds)
    if len(keys) != len(seeds):
        raise InputError(f"{len(keys)} keys and {len(seeds)} seeds do not match: give one key, or one a seed")
    start = time.perf_counter()
    safe = SafeGuidance(SAFE[config.safe]) if config.safe != "none" else None
    negative, avoided = ("", config.negative) if safe else (config.negative, None)
    denoiser = denoiser_of(pipe, guidance_scale=config.guidance_scale, safe=safe, replay=True)
    if negative and is_distilled(pipe):
        raise UnsupportedError(f"{type(pipe).__name__} guides itself by one prompt: leave the negative prompt out")
    grid, solver = make_run(pipe, denoiser.schedule, config)
    check_start(denoiser.kind, grid[0])
    shape, parts = latent_shape(pipe), []
    if latents is not None and latents.shape != (len(seeds), *shape):
        raise InputError(f"latents are {tuple(latents.shape)}: start from {(len(seeds), *shape)}, one a seed")
    for first in range(0, len(seeds), batch_size):
        rows = list(seeds[first : first + batch_size])
        guided, asked = config.guidance_scale > 1, prompts[first : first + batch_size]
        cond = encode_prompts(pipe, asked, negative=negative, avoided=avoided, guided=guided)
        cond = prompted(cond, keys[first : first + batch_size])
        begun = _start(solver, rows, shape, grid[0]) if latents is None else latents[first : first + batch_size].float()
        begun = x = begun.to(pipe.device)
        for x in sample_steps(denoiser, begun, grid, solver, cond=cond, seeds=rows if solver.noisy else None):
            yield x
        parts.append((x, decode_latents(pipe, x)))
    latents, images = (torch.cat(column) for column in zip(*parts, strict=True))
    nfe = len(grid) - 1
    return Samples(images, latents, grid, nfe, denoiser.network_evaluations, time.perf_counter() - start)


def _start(solver: Solver, seeds: Sequence[int], shape: Sequence[int], first: Level) -> Tensor:
    """The noise of seeds at the first level; consistency models were trained from noise alone, without data's share."""
    noise = start_noise(seeds, shape, first)
    return (
        noise * (first.sigma / math.hypot(first.alpha, first.sigma)) if isinstance(solver, ConsistencyStep) else noise
    )
