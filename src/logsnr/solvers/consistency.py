"""The step of a consistency model: clean data at once, then new noise for the next level (2303.01469, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from logsnr.core.types import Denoiser, Level
from logsnr.schedules.boundary import Boundary
from logsnr.schedules.origins import is_few_step
from logsnr.solvers.config import SampleConfig


@dataclass(frozen=True)
class ConsistencyStep:
    """A solver for networks that were trained as consistency models; every other one would be led astray by it."""

    boundary: Boundary
    noisy: ClassVar[bool] = True

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Any
    ) -> tuple[Tensor, Any]:
        of_x, of_clean = self.boundary.weights(here.sigma / here.alpha)
        clean = of_x / here.alpha * x + of_clean * denoiser(x, here).x0
        if noise is None:
            return there.alpha * clean, memory
        return there.alpha * (clean + self.boundary.renoised(there.sigma / there.alpha) * noise), memory


def usual_sampling(config: Mapping[str, Any]) -> SampleConfig:
    """What a pipeline with this scheduler configuration is sampled by if nothing is asked for.

    A consistency model takes as many calls as it has levels for, and the guidance that it has learned: at 1 if that is
    in its weights, at the greatest scale if it is told one.
    """
    if not is_few_step(config):
        return SampleConfig()
    calls, learned = 1 + len(config["middle_sigmas"] or ()), list(config.get("guidance") or ())
    return SampleConfig(steps=calls, guidance_scale=float(learned[-1]) if len(learned) > 1 else 1.0)


def consistency_step(config: Mapping[str, Any]) -> ConsistencyStep | None:
    """The step of a pipeline with this scheduler configuration, if its network is a consistency model."""
    if not is_few_step(config):
        return None
    return ConsistencyStep(Boundary(config["sigma_min"], config["sigma_data"]))
