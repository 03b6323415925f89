"""Levels, stages and scales of consistency training (2502.01441; the curriculum is that of 2310.14189).

A grid of N noise levels runs from sigma_max down to sigma_min. Training pairs neighbours: the student at the noisier,
the target at the cleaner one. N doubles from stage to stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from logsnr.core.errors import InputError

_MOMENTS = 7


def sigma_grid(
    num_levels: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, grid_exponent: float = 7.0
) -> Tensor:
    """Noise levels (num_levels,), equally spaced in sigma^(1 / grid_exponent), noisiest first, in float64."""
    first, last = (value ** (1 / grid_exponent) for value in (sigma_max, sigma_min))
    sigmas = torch.linspace(first, last, num_levels, dtype=torch.float64) ** grid_exponent
    sigmas[0], sigmas[-1] = sigma_max, sigma_min
    return sigmas


@dataclass(frozen=True)
class Curriculum:
    """How many levels the grid has: ``start`` + 1 of them, doubled in stages of equal length up to ``end`` + 1.

    By the "root" of the share of steps that are done it grows from ``start`` levels instead (2303.01469).

    Raises:
        InputError: the end is below the start, or there are fewer steps than stages.
    """

    steps: int
    start: int = 10
    end: int = 640
    growth: Literal["doubling", "root"] = "doubling"

    def __post_init__(self) -> None:
        if self.start < 1 or self.end < self.start:
            raise InputError(
                f"the curriculum goes from {self.start} to {self.end} levels: it must rise from at least 1"
            )
        if self.growth == "root" and self.start < 2:
            raise InputError("a grid needs two levels at least: start from 2")
        if self.growth == "doubling" and self.steps < self.num_stages:
            raise InputError(f"{self.steps} steps are too few for {self.num_stages} stages: train longer, or end lower")

    @property
    def stage_length(self) -> int:
        """Steps of a stage; the last one has what is left."""
        return self.steps // self.num_stages

    @property
    def num_stages(self) -> int:
        """How many numbers of levels there are."""
        return math.ceil(math.log2(self.end / self.start)) + 1

    def stage(self, step: int) -> int:
        """The stage of a step, from 0 on."""
        return min(step // self.stage_length, self.num_stages - 1)

    def num_levels(self, step: int) -> int:
        """N at a step."""
        if self.growth == "root":
            squares = self.start**2 + min(step / self.steps, 1.0) * ((self.end + 1) ** 2 - self.start**2)
            return math.ceil(math.sqrt(squares) - 1) + 1
        return min(self.start * 2 ** self.stage(step), self.end) + 1

    def grids(self) -> list[int]:
        """N of every stage; of a grid that always grows, at seven moments of the run."""
        count = self.num_stages if self.growth == "doubling" else _MOMENTS
        length = self.stage_length if self.growth == "doubling" else self.steps // (count - 1)
        return list(dict.fromkeys(self.num_levels(place * length) for place in range(count)))


def target_decay(initial: float, start: int, num_levels: int) -> float:
    """The decay of the average that is the target (2303.01469): ``initial`` at first, nearer to 1 on finer grids."""
    return math.exp(start * math.log(initial) / num_levels) if initial else 0.0


def level_chances(sigmas: Tensor, *, mean: float = -1.1, std: float = 2.0) -> Tensor:
    """How often each pair of neighbours is drawn (N - 1,): ln sigma is normal between their two levels."""
    places = torch.erf((sigmas.log() - mean) / (math.sqrt(2) * std))
    chances = places[:-1] - places[1:]
    return chances / chances.sum()


def pair_weights(sigmas: Tensor) -> Tensor:
    """1 / (sigma_i - sigma_i+1) of each pair of neighbours (N - 1,)."""
    return 1 / (sigmas[:-1] - sigmas[1:])


def normal_share(value: float) -> float:
    """The share of a standard normal distribution below a value."""
    return (1 + math.erf(value / math.sqrt(2))) / 2


def ratio_below(sigmas: Tensor, stage: int, *, base: float = 2.0) -> Tensor:
    """r / s of the target's level to the student's s (n,), for data of deviation 1/2 (2406.14548); 0 is clean data.

    1 - base^-(stage + 1) (1 + 8 sigmoid(-s)): the gap closes by ``base`` stage by stage, and is wider at low noise.
    """
    return (1 - base ** -(stage + 1) * (1 + 8 * torch.sigmoid(-sigmas))).clamp(min=0)


def fitted_scale(num_levels: int) -> float:
    """The scale c(N) of the penalty that the authors fitted, of mean squared errors of data with deviation 1/2."""
    return math.exp(-1.15 * math.log(num_levels - 1) - 0.85)


def averaging_decay(steps: int, half_life: float = 0.034) -> float:
    """The decay of an average of weights whose half-life is this share of a run."""
    return float(np.clip(1 - math.log(2) / (half_life * steps), 0.0, 0.99999))
