"""Per-sample noise of a solver: the start and every step of sample k depend on its own seed alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from logsnr.core.random import sample_noise
from logsnr.core.types import Level


def start_noise(seeds: Sequence[int], shape: Sequence[int], start: Level) -> Tensor:
    """Samples (len(seeds), *shape) at the start level for data of unit variance."""
    return sample_noise(seeds, shape) * (start.alpha**2 + start.sigma**2) ** 0.5


def step_noise(seeds: Sequence[int], shape: Sequence[int], step: int) -> Tensor:
    """Standard normal noise (len(seeds), *shape) of one step."""
    return sample_noise(seeds, shape, stream=step)
