"""Which level of noise a step of training is about, how its loss is weighted, and what the network is told."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from logsnr.core.types import Level
from logsnr.erasure.config import EraseConfig
from logsnr.schedules.grids import uniform_time
from logsnr.schedules.prediction import Kind
from logsnr.schedules.schedule import Schedule, levels_at
from logsnr.solvers.trajectory import loss_weights


class LevelDraw:
    """Levels of a uniform grid, drawn with ``chances``; a loss is divided by its chance, so its mean is the same.

    ``chances`` is None until a pilot run has measured which are best, where the configuration asks for that.
    """

    def __init__(self, schedule: Schedule, kind: Kind, config: EraseConfig):
        self.schedule, self.exact = schedule, config.alignment == "exact"
        self.grid = uniform_time(schedule, config.trajectory_steps)
        self.weights = loss_weights(kind, self.grid[:-1], config.loss_weighting, cap=config.w_max)
        self.chances: list[float] | None = None
        if config.timestep_sampling == "uniform":
            self.chances = self.even()
        elif config.timestep_sampling == "weight":
            self.chances = with_floor(self.weights)

    def draw(self, draw: float, within: float) -> tuple[int, float, Level]:
        """From two uniform draws: a place in the grid, the weight of its loss, and the level that the network is told.

        As released, that is any level between this place and the next.
        """
        assert self.chances is not None
        sums = list(itertools.accumulate(self.chances))
        place = next((place for place, total in enumerate(sums) if draw < total), len(sums) - 1)
        weight = self.weights[place] / (len(self.weights) * self.chances[place])
        if self.exact:
            return place, weight, self.grid[place]
        return place, weight, levels_at(self.schedule, [1 - (place + within) / len(self.weights)])[0]

    def even(self) -> list[float]:
        """The same chance for every level."""
        return normal([1.0] * len(self.weights))

    def noisiest_share(self, count: int = 5) -> float:
        """The share of all loss weight that the noisiest levels have."""
        return sum(self.weights[:count]) / sum(self.weights)


def normal(values: Sequence[float]) -> list[float]:
    """The values over their sum."""
    return [value / sum(values) for value in values]


def with_floor(values: Sequence[float], floor: float = 0.1) -> list[float]:
    """Chances by the values, of which all places share the ``floor`` alike, so that no level is never seen."""
    return [(1 - floor) * chance + floor / len(values) for chance in normal(values)]
