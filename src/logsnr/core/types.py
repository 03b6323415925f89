"""The contracts that everything shares: a level of noise, a prediction, a denoiser and a solver."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One noise level: xt = alpha * x0 + sigma * eps at time t. The ends sigma = 0 and alpha = 0 are exact."""

    t: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2); infinite at the two ends."""
        if self.sigma == 0:
            return math.inf
        return 2 * math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    @property
    def log_ratio(self) -> float:
        """log(alpha / sigma), half of ``log_snr``."""
        return self.log_snr / 2


@dataclass(frozen=True)
class Prediction:
    """What a network says about a noisy sample, in both forms: clean data and noise, shaped like the sample."""

    x0: Tensor
    eps: Tensor


class Denoiser(Protocol):
    """A network with its schedule: from a noisy sample (n, ...) at a level to a prediction."""

    def __call__(self, xt: Tensor, level: Level, cond: Any = None) -> Prediction: ...


class Solver(Protocol):
    """One step from level ``here`` to the cleaner level ``there``.

    ``noise`` is a standard normal tensor like x, or None for a deterministic step; ``memory`` is None at first, then
    whatever the solver returned.
    """

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Any
    ) -> tuple[Tensor, Any]: ...
