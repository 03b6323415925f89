"""Partial trajectories for methods that train on a model's own noisy samples, and the weights of their losses.

A state is the sample at ``grid[index]`` and the network is told just that level. A loss on outputs of any prediction
kind becomes one on clean data or on noise by a weight of the level alone, for every output is linear in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level
from logsnr.schedules.prediction import Kind, meaning
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.sample import sample_steps

Weighting = Literal["epsilon", "x0", "min_snr"]


def state_at(
    denoiser: Denoiser, x: Tensor, grid: Sequence[Level], index: int, *, cond: Any = None, first: int = 0
) -> Tensor:
    """The sample (n, ...) at ``grid[index]``, by DDIM steps from x at ``grid[first]``; no gradients."""
    for state in islice(sample_steps(denoiser, x, grid[first:], Exponential(1), cond=cond), index - first):
        x = state
    return x


def loss_weights(
    kind: Kind, levels: Sequence[Level], weighting: Weighting, *, cap: float | None = None, gamma: float = 5.0
) -> list[float]:
    """Weights of squared errors of a network's output, one a level, of mean 1 and at most ``cap``.

    ``x0`` counts the error of the clean data (2410.15618), ``epsilon`` that of the noise, ``min_snr`` the first by
    min(SNR, gamma) (2303.09556).

    Raises:
        InputError: a weight is infinite, at alpha = 0, and there is no cap; or the cap is below 1.
    """
    raw = [_weight(kind, level, weighting, gamma) for level in levels]
    if cap is None:
        if not math.isfinite(sum(raw)):
            raise InputError(f"the weighting {weighting} is infinite at alpha = 0: give w_max, or use another")
        return [value * len(raw) / sum(raw) for value in raw]
    if cap < 1:
        raise InputError(f"w_max is {cap}: weights have mean 1, so it must be at least 1")
    return _capped(raw, cap)


def _weight(kind: Kind, level: Level, weighting: Weighting, gamma: float) -> float:
    means = meaning(kind, level)
    area = level.alpha * means.of_eps - level.sigma * means.of_x0  # 0 at alpha = 0 where outputs hold noise alone
    of_noise = (level.alpha / area) ** 2 if area else means.of_eps**-2
    of_data = (level.sigma / area) ** 2 if area else math.inf
    if weighting == "min_snr":
        return min(of_noise, gamma * of_data)
    return of_noise if weighting == "epsilon" else of_data


def _capped(raw: Sequence[float], cap: float) -> list[float]:
    """Scale to mean 1 with none above the cap: those that would be are the cap, and the others share the rest."""
    order = sorted(range(len(raw)), key=lambda place: -raw[place])
    for num_capped in range(len(raw)):
        rest = [raw[place] for place in order[num_capped:]]
        scale = (len(raw) - num_capped * cap) / sum(rest) if sum(rest) else math.inf
        if math.isfinite(sum(rest)) and rest[0] * scale <= cap:
            break
    return [cap if place in order[:num_capped] else raw[place] * scale for place in range(len(raw))]
