"""Which noise levels are paired: neighbours on a grid (2502.01441), or any level with one below it (2406.14548)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.curriculum import level_chances, normal_share, pair_weights, ratio_below, sigma_grid
from logsnr.consistency.function import Levels, consistency_levels
from logsnr.consistency.losses import small_sigma_mask
from logsnr.schedules.boundary import Boundary


@dataclass(frozen=True)
class Pairs:
    """One pair of a batch's every row (n,): its places in a table of levels, how it weighs, whether noise is low.

    Where ``clean`` is true the target is the clean sample itself.
    """

    levels: Levels
    student: Tensor
    target: Tensor
    weights: Tensor
    low: Tensor
    clean: Tensor | None = None

    def sigma(self) -> Tensor:
        """The student's noise (n,)."""
        return self.levels.sigmas.to(self.student.device)[self.student]


class Stage(Protocol):
    """Pairs as one stage of training draws them; ``low`` is how many have low noise on average, as a share."""

    low: float

    def draw(self, uniform: Tensor) -> Pairs:
        """From uniform draws (n,)."""
        ...


class GridStage:
    """A grid of so many levels: how often each pair of neighbours is drawn, and how much it weighs."""

    def __init__(self, num_levels: int, told: Mapping[str, Any], config: ConsistencyConfig):
        self.sigmas, self.rate = _grid(num_levels, config), config.denoising_rate
        self.levels = _table(self.sigmas, told, config)
        self.weights = pair_weights(self.sigmas / (2 * config.sigma_data))
        if config.pair_weighting == "none":
            self.weights = torch.ones_like(self.weights)
        chances = torch.full((num_levels - 1,), 1 / (num_levels - 1), dtype=torch.float64)
        if config.pairing == "lognormal":
            chances = level_chances(self.sigmas, mean=config.level_mean, std=config.level_std)
        self.chances, self.low = chances.cumsum(0), float(chances[self._low(torch.arange(num_levels - 1))].sum())

    def draw(self, uniform: Tensor) -> Pairs:
        chances = self.chances.to(uniform.device)
        return self.at(torch.searchsorted(chances, uniform.double()).clamp(max=len(chances) - 1))

    def at(self, places: Tensor) -> Pairs:
        """The pairs whose noisier levels have these places (n,)."""
        return Pairs(self.levels, places, places + 1, self.weights.to(places.device)[places], self._low(places))

    def _low(self, places: Tensor) -> Tensor:
        return small_sigma_mask(places, len(self.sigmas), self.rate)


class ContinuousStage:
    """Any level, and one below it that comes nearer stage by stage; at first it is the clean sample in most pairs.

    A level below the least is the clean sample too, and then the gap is the whole level.
    """

    def __init__(self, stage: int, told: Mapping[str, Any], config: ConsistencyConfig):
        self.stage, self.told, self.config = stage, told, config
        self.ends = math.log(config.sigma_min), math.log(config.sigma_max)
        grid = _grid(config.end_levels + 1, config)
        self.lowest = float(grid[min(int(config.denoising_rate * len(grid)), len(grid) - 1)])
        self.shares = [self._share(end) for end in self.ends]
        self.low = (self._share(math.log(self.lowest)) - self.shares[0]) / (self.shares[1] - self.shares[0])

    def _share(self, log_sigma: float) -> float:
        return normal_share((log_sigma - self.config.level_mean) / self.config.level_std)

    def draw(self, uniform: Tensor) -> Pairs:
        least, most = self.shares
        normal = math.sqrt(2) * torch.erfinv(2 * (least + uniform.double() * (most - least)) - 1)
        sigmas = (self.config.level_mean + self.config.level_std * normal).clamp(*self.ends).exp()
        unit, number = 2 * self.config.sigma_data, len(sigmas)
        below = sigmas * ratio_below(sigmas / unit, self.stage, base=self.config.ratio_base)
        clean, places = below < self.config.sigma_min, torch.arange(number, device=uniform.device)
        below = below.clamp(min=self.config.sigma_min)
        levels = _table(torch.cat([sigmas, below]).cpu(), self.told, self.config)
        weights = unit / (sigmas - torch.where(clean, 0.0, below))
        return Pairs(levels, places, places + number, weights, sigmas < self.lowest, clean)


def make_stage(number: int, told: Mapping[str, Any], config: ConsistencyConfig) -> Stage:
    """The stage of so many levels, or of this number from 0 on where levels are continuous."""
    return (GridStage if config.levels == "grid" else ContinuousStage)(number, told, config)


def _grid(num_levels: int, config: ConsistencyConfig) -> Tensor:
    ends = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "grid_exponent": config.grid_exponent}
    return sigma_grid(num_levels, **ends)


def _table(sigmas: Tensor, told: Mapping[str, Any], config: ConsistencyConfig) -> Levels:
    return consistency_levels(told, Boundary(config.sigma_min, config.sigma_data), sigmas.tolist())
