"""Diffusers' schedulers as peers: the same network, the same levels exactly, and their own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from logsnr.core.types import Level
from logsnr.solvers.reference import Model


@dataclass(frozen=True)
class Peer:
    """How a scheduler runs, and how many levels it visits with a number of calls."""

    name: str
    run: Callable[[Model, Tensor, Sequence[Level], Tensor], Tensor]
    levels: Callable[[int], int] = lambda calls: calls


def _set(scheduler: Any, sigmas: Sequence[float]) -> Any:
    """Put a grid of sigma / alpha into a scheduler that reads its ``sigmas``."""
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    scheduler.timesteps = torch.arange(steps, 0, -1)
    scheduler.set_begin_index(0)
    return scheduler


def _noise(levels: Sequence[Level]) -> list[float]:
    return [level.sigma / level.alpha for level in levels]


def _multistep(make: Callable[[], Any], *, to_zero: bool) -> Callable[[Model, Tensor, Sequence[Level], Tensor], Tensor]:
    """A multistep scheduler of clean estimates; one that cannot step to zero noise ends with a clean estimate."""

    def run(model: Model, z: Tensor, levels: Sequence[Level], rows: Tensor) -> Tensor:
        visited = list(levels) if to_zero else list(levels[:-1])
        if len(visited) > 1:
            scheduler = _set(make(), _noise(visited))
            for index, level in enumerate(visited[:-1]):
                z = scheduler.step(model(z, level, rows), scheduler.timesteps[index], z).prev_sample.to(z)
        return z if to_zero else model(z, visited[-1], rows)

    return run


def _ipndm(model: Model, z: Tensor, levels: Sequence[Level], rows: Tensor) -> Tensor:
    """It takes v and keeps alpha and sigma of its own: they are replaced by the grid's."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.alphas, scheduler.betas = (
        torch.tensor([getattr(level, name) for level in levels], dtype=torch.float64) for name in ("alpha", "sigma")
    )
    scheduler.set_begin_index(0)
    for index, level in enumerate(levels[:-1]):
        x0 = model(z, level, rows)
        v = (level.alpha * z - x0) / level.sigma
        z = scheduler.step(v, scheduler.timesteps[index], z).prev_sample.to(z)
    return z


def _heun(model: Model, z: Tensor, levels: Sequence[Level], rows: Tensor) -> Tensor:
    """Two calls a step, one in the last; it keeps y = x / alpha and takes the noise."""
    sigmas = _noise(levels)
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(len(sigmas) - 1)
    inner = [sigma for sigma in sigmas[1:-1] for _ in range(2)]
    scheduler.sigmas = torch.tensor([sigmas[0], *inner, sigmas[-1]], dtype=torch.float64)
    visits = [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
    scheduler.timesteps = torch.arange(len(visits), 0, -1)
    scheduler.set_begin_index(0)
    y = z / levels[0].alpha
    for index, level in enumerate(visits):
        x0 = model(level.alpha * y, level, rows)
        eps = (y - x0) * (level.alpha / level.sigma)
        y = scheduler.step(eps, scheduler.timesteps[index], y).prev_sample.to(z)
    return y


def _dpm(order: int, **options: Any) -> Any:
    return DPMSolverMultistepScheduler(prediction_type="sample", solver_order=order, **options)


PEERS = (
    Peer("DPM++2M", _multistep(lambda: _dpm(2), to_zero=True)),
    Peer("DPM++2M heun", _multistep(lambda: _dpm(2, solver_type="heun"), to_zero=True)),
    Peer("DPM++3M", _multistep(lambda: _dpm(3), to_zero=True)),
    Peer(
        "UniPC 2", _multistep(lambda: UniPCMultistepScheduler(prediction_type="sample", solver_order=2), to_zero=True)
    ),
    Peer(
        "UniPC 3", _multistep(lambda: UniPCMultistepScheduler(prediction_type="sample", solver_order=3), to_zero=True)
    ),
    Peer("DEIS 2", _multistep(lambda: DEISMultistepScheduler(prediction_type="sample", solver_order=2), to_zero=False)),
    Peer("DEIS 3", _multistep(lambda: DEISMultistepScheduler(prediction_type="sample", solver_order=3), to_zero=False)),
    Peer(
        "SA-Solver, tau 0",
        _multistep(lambda: SASolverScheduler(prediction_type="sample", tau_func=lambda _t: 0), to_zero=False),
    ),
    Peer("IPNDM", _ipndm),
    Peer("Heun", _heun, lambda calls: (calls + 1) // 2),
)
"""All deterministic; Heun visits half as many levels."""

OPTIMISED = ("DPM++2M", "UniPC 2", "UniPC 3")
"""Peers that also get a grid searched for them."""
