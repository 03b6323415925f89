"""Adaptive steps in log-SNR: an embedded pair of orders 2 and 3 on the same evaluations, and a controller."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level
from logsnr.schedules.grids import DATA
from logsnr.schedules.schedule import Schedule, levels_of
from logsnr.solvers.exponential import moved_by
from logsnr.solvers.weights import step_weights


@dataclass(frozen=True)
class Adaptive:
    """Tolerances of one step, relative to a sample of unit variance, and limits of the run."""

    rtol: float = 1e-2
    atol: float = 1e-3
    first: float = 0.1
    """The first step in log(alpha / sigma)."""
    max_calls: int = 1000

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol > 0 and self.first > 0 and self.max_calls > 0):
            raise InputError("tolerances, the first step and max_calls must be positive: see Adaptive")


@torch.no_grad()
def adaptive_steps(
    denoiser: Denoiser, x: Tensor, schedule: Schedule, start: Level, end: Level, config: Adaptive | None = None
) -> Iterator[tuple[Level, Tensor]]:
    """Yield (level, sample) after each accepted step of the probability-flow ODE, then clean data after ``end``.

    x (n, ...) is the sample at ``start``, which must hold some data. One call a step that is accepted; a rejected one
    costs none, as the evaluations are kept.

    Raises:
        InputError: alpha = 0 at the start, sigma = 0 at the end, or more than ``max_calls`` evaluations.
    """
    config = config or Adaptive()
    if start.alpha == 0 or end.sigma == 0:
        raise InputError("adaptive steps need some data at the start and some noise at the end: choose levels inside")
    here, step, history, last_error = start, config.first, (), 1.0
    for _ in range(config.max_calls):
        history = ((here, denoiser(x, here).x0), *history)[:3]
        if here == end:
            yield DATA, history[0][1]
            return
        there, moved, error = _accepted(history, x, schedule, end, step, config)
        grow = 0.9 * error ** (-0.7 / 3) * last_error ** (0.4 / 3)
        step = (there.log_ratio - here.log_ratio) * min(max(grow, 0.2), 2.0)
        here, x, last_error = there, moved, error
        yield here, x
    raise InputError(f"the tolerances need more than {config.max_calls} evaluations: loosen them, or raise max_calls")


def _accepted(
    history: tuple[tuple[Level, Tensor], ...], x: Tensor, schedule: Schedule, end: Level, step: float, config: Adaptive
) -> tuple[Level, Tensor, float]:
    """The longest step up to ``step`` whose error estimate is below the tolerance."""
    here = history[0][0]
    while True:
        left = end.log_ratio - here.log_ratio
        there = end if left <= step * 1.01 else levels_of(schedule, [2 * (here.log_ratio + step)])[0]
        high, low = (_step(history[:order], x, here, there) for order in (len(history), max(len(history) - 1, 1)))
        if len(history) == 1:
            low = x * (there.alpha / here.alpha)
        largest = max(float(z.abs().amax()) / math.hypot(at.alpha, at.sigma) for z, at in ((x, here), (high, there)))
        bound = (config.atol + config.rtol * largest) * math.hypot(there.alpha, there.sigma)
        error = max(float(((high - low) / bound).square().mean().sqrt()), 1e-6)
        if error <= 1 or step < 1e-6:
            return there, high, error
        step = (there.log_ratio - here.log_ratio) * max(0.2, 0.9 * error ** (-1 / 3))


def _step(history: tuple[tuple[Level, Tensor], ...], x: Tensor, here: Level, there: Level) -> Tensor:
    return moved_by(step_weights(here, there, tuple(level for level, _ in history)), x, history, None)
