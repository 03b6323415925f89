"""Per-sample noise of a solver: the start and every step of sample k depend on its own seed alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import NoisePath, sample_noise
from logsnr.core.types import Level
from logsnr.solvers.backward import Rho, rho_of_step

StepNoise = Callable[[Sequence[int], Sequence[int], int], Tensor]
"""Standard normal noise (len(seeds), *shape) of (seeds, shape, step)."""


def start_noise(seeds: Sequence[int], shape: Sequence[int], start: Level) -> Tensor:
    """Samples (len(seeds), *shape) at the start level for data of unit variance."""
    return sample_noise(seeds, shape) * (start.alpha**2 + start.sigma**2) ** 0.5


def step_noise(seeds: Sequence[int], shape: Sequence[int], step: int) -> Tensor:
    """Standard normal noise (len(seeds), *shape) of one step, independent of every other step."""
    return sample_noise(seeds, shape, stream=step)


def seeds_of_rows(seeds: Sequence[int], rows: int) -> list[int]:
    """Seeds for the rows of a batch, which may hold the samples several times over, as guidance does.

    Raises:
        InputError: the rows are no multiple of the seeds.
    """
    if rows % len(seeds):
        raise InputError(f"{len(seeds)} seeds do not fit a batch of {rows}: set one seed a sample")
    return list(seeds) * (rows // len(seeds))


class BrownianNoise:
    """``step_noise`` of runs that share one Brownian path a seed, however many steps they take.

    Steps draw the path's increments in the solver's own clock of noise, so that the noises of two steps add up to that
    of one step over both. Within a run they are independent and standard normal.
    """

    def __init__(self, rho: Rho, levels: Sequence[Level]):
        self.clock = noise_clock(rho, levels)
        self._paths: dict[tuple[int, ...], NoisePath] = {}

    def __call__(self, seeds: Sequence[int], shape: Sequence[int], step: int) -> Tensor:
        """Standard normal noise (len(seeds), *shape) of one step with rho > 0."""
        rows = {seed: self._increment(seed, shape, step) for seed in dict.fromkeys(seeds)}
        return torch.stack([rows[seed] for seed in seeds])

    def _increment(self, seed: int, shape: Sequence[int], step: int) -> Tensor:
        here, there = self.clock[step : step + 2]
        path = self._paths.setdefault((seed, *shape), NoisePath(seed, shape))
        if here == -math.inf:
            return path(there)
        before = path(here)
        return (path(there) - math.exp((here - there) / 2) * before) / math.sqrt(-math.expm1(here - there))


def noise_clock(rho: Rho, levels: Sequence[Level]) -> list[float]:
    """The integral of rho^2 over log-SNR, from log-SNR 0 to each level that has noise.

    A step over a gap of this clock keeps exp(-gap) of the variance of the noise and renews the rest.
    """
    values, times = [level.log_snr for level in levels if level.sigma], list[float]()
    for step, value in enumerate(values):
        if value == -math.inf:
            times.append(value)
        elif not times or times[-1] == -math.inf:
            times.append(_spent(rho, step, 0.0, value))
        else:
            times.append(times[-1] + _spent(rho, step - 1, values[step - 1], value))
    return times


def _spent(rho: Rho, step: int, low: float, high: float) -> float:
    """The integral of rho^2 over log-SNR, with the rho of one step."""
    rate = rho_of_step(rho, step)
    if not callable(rate):
        return rate**2 * (high - low)
    return 2 * integrate.quad(lambda ratio: float(rate(np.asarray(ratio))) ** 2, low / 2, high / 2, limit=200)[0]


def seeds_of(generators: Any, count: int) -> list[int]:
    """The seeds of ``count`` samples from one generator each: a list, or a single one for a single sample.

    Raises:
        InputError: there are not as many generators.
    """
    listed = generators if isinstance(generators, list | tuple) else [generators] if generators else []
    if len(listed) != count:
        raise InputError("Brownian noise belongs to seeds: call set_seeds, or pass one generator a sample")
    return [each.initial_seed() for each in listed]
