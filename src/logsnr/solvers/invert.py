"""Inversion: the noise that leads to given data, by the probability-flow ODE on a grid that is run backwards.

It is not exact, as each step is computed from its other end: ``round_trip_error`` measures what that costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level
from logsnr.schedules.grids import check_grid
from logsnr.solvers.backward import Rho
from logsnr.solvers.exponential import Exponential, moved_by
from logsnr.solvers.sample import sample_steps
from logsnr.solvers.weights import inverse_weights


@torch.no_grad()
def invert(
    denoiser: Denoiser, x: Tensor, grid: Sequence[Level], *, order: int = 2, rho: Rho = 0.0, cond: Any = None
) -> Tensor:
    """The sample (n, ...) at the first level of ``grid`` from which the ODE leads to x, in as many calls as sampling.

    ``grid`` is that of sampling, noisiest level first. If it ends at clean data, x is data, and the last step of
    sampling, which returned x0 = x, is undone with the noise that the denoiser finds when x is taken for a sample at
    the last noisy level. If it ends before, x is a sample at its last level.

    Raises:
        InputError: rho above 0, another order than 1 to 4, or a grid that keeps nothing of the data.
    """
    if Exponential(order, rho).noisy:
        raise InputError("inversion follows the ODE, for noise that was drawn cannot be taken back: use rho = 0")
    levels, nodes = check_grid(grid)[::-1], ()
    if levels[0].sigma == 0:
        data = levels.pop(0)
        if levels[0].alpha == 0:
            raise InputError("one step from pure noise keeps nothing of the data: give the grid more levels")
        x = levels[0].alpha / data.alpha * x
        x = x + levels[0].sigma * denoiser(x, levels[0], cond).eps
    for here, there in pairwise(levels):
        nodes = ((here, denoiser(x, here, cond).x0), *nodes)[:order]
        x = moved_by(inverse_weights(here, there, tuple(level for level, _ in nodes)), x, nodes, None)
    return x


def round_trip_error(
    denoiser: Denoiser, x: Tensor, grid: Sequence[Level], *, noise: Tensor, order: int = 2, cond: Any = None
) -> Tensor:
    """Root mean square distance (n,) from x to what sampling makes of ``noise``, which ``invert`` found for it."""
    steps = sample_steps(denoiser, noise, grid, Exponential(order), cond=cond)
    return (deque(steps, maxlen=1).pop() - x).flatten(1).square().mean(1).sqrt()
