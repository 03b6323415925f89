"""Fine reference trajectories of a denoiser, at unit total variance, where nothing is infinite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level
from logsnr.models.denoiser import Conditioning, select_rows
from logsnr.schedules.families import VariancePreserving
from logsnr.schedules.grids import DATA, uniform_log_snr
from logsnr.schedules.schedule import Schedule, levels_at, levels_of
from logsnr.solvers.exponential import Exponential

Progress = Callable[[Iterable[Any]], Iterable[Any]]
END = 1e-3
"""The time of the last noisy level of a reference: the first timestep of a chain of a thousand."""


class _Unit(VariancePreserving):
    """Levels by log-SNR alone, at unit total variance: where everything is fitted."""

    def __init__(self, schedule: Schedule):
        self.base = schedule

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t)

    def t_of(self, log_snr: Tensor) -> Tensor:
        return self.base.t_of(log_snr)


@dataclass(frozen=True)
class Reference:
    """Fine trajectories: states and clean estimates (nodes, n, d) at ``levels`` (unit variance), float32."""

    levels: list[Level]
    states: Tensor
    estimates: Tensor

    @property
    def final(self) -> Tensor:
        """The clean samples that the trajectories end in, (n, d)."""
        return self.estimates[-1]

    @cached_property
    def data_std(self) -> float:
        """Standard deviation of the clean samples about their mean."""
        return float((self.final - self.final.mean(0)).square().mean().sqrt())


class Model:
    """A denoiser on flat rows with their conditioning, which counts the samples that go through it."""

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        shape: Sequence[int],
        cond: Conditioning | None,
        batch_size: int = 64,
    ):
        self.denoiser, self.schedule, self.shape, self.cond, self.batch_size = (
            denoiser,
            schedule,
            shape,
            cond,
            batch_size,
        )
        self.unit = _Unit(schedule)
        self.evaluations = 0
        self._before = self._counted()

    @property
    def network_evaluations(self) -> int:
        """Samples through the network: by the denoiser's own count where it has one, else one each."""
        return self._counted() - self._before or self.evaluations

    def _counted(self) -> int:
        return getattr(self.denoiser, "network_evaluations", 0)

    def __call__(self, z: Tensor, level: Level, rows: Tensor) -> Tensor:
        """Clean estimates (n, d) of unit-variance states z (n, d); ``rows`` are their places in the conditioning."""
        own = levels_of(self.schedule, [level.log_snr])[0] if level.alpha else levels_at(self.schedule, [1.0])[0]
        scale = (own.alpha**2 + own.sigma**2) ** 0.5
        self.evaluations += len(z)
        parts = []
        for part, which in zip(z.split(self.batch_size), rows.split(self.batch_size), strict=True):
            found = self.denoiser(scale * part.reshape(-1, *self.shape), own, self.given(which))
            parts.append(found.x0.flatten(1))
        return torch.cat(parts)

    def given(self, rows: Tensor) -> Conditioning | None:
        """The conditioning of some rows."""
        if self.cond is None:
            return None
        free = self.cond.unconditional
        return Conditioning(select_rows(self.cond.values, rows), None if free is None else select_rows(free, rows))


def make_reference(model: Model, noise: Tensor, rows: Tensor, steps: int, progress: Progress = iter) -> Reference:
    """Third-order trajectories from unit noise (n, d) over ``steps`` levels equal in log-SNR, every state kept.

    Raises:
        InputError: the network gives values that are not finite.
    """
    levels = uniform_log_snr(model.unit, steps, start=_start(model.schedule), end=END)[:-1]
    if _start(model.schedule) < 1:
        levels = [levels_at(model.unit, [1.0])[0], *levels]
    solver, memory, z = Exponential(3), None, noise
    states, estimates = [], []
    for index in progress(range(len(levels))):
        here, there = levels[index], levels[index + 1] if index + 1 < len(levels) else DATA
        x0 = model(z, here, rows)
        _check_finite(x0, here)
        states.append(z)
        estimates.append(x0)
        z, memory = solver.advance(z, x0, here, there, None, memory)
    return Reference(levels, torch.stack(states), torch.stack(estimates))


def _check_finite(x0: Tensor, level: Level) -> None:
    """Refuse a broken network at its first call that shows it."""
    if not bool(x0.isfinite().all()):
        raise InputError(
            f"the network gives values that are not finite at t = {level.t:.3g}, so that there is no solution to "
            "compare with: check its weights, and its precision (float16 overflows where float32 does not)"
        )


def reach(model: Model) -> tuple[float, float]:
    """The log-SNR of the first level that holds some data, and of the last one, of any reference."""
    low, high = levels_at(model.unit, [_start(model.schedule), END])
    return low.log_snr, high.log_snr


def _start(schedule: Schedule) -> float:
    """The first time with some data left."""
    return 1.0 if float(schedule.alpha(torch.ones((), dtype=torch.float64))) > 0 else 0.999
