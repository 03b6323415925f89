"""A network trained with one member of the family, used inside another: only the scale of its input changes.

At equal log-SNR clean data and noise are the same for every member (2408.04221), so a run may follow any schedule.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from logsnr.core.types import Denoiser, Level, Prediction
from logsnr.schedules.schedule import Schedule, levels_of, trained_range


class Rescheduled:
    """A denoiser on ``schedule`` made of one on ``trained``, which is the denoiser's own schedule if not given.

    At a level the network sees xt * alpha / alpha' with the alpha of its own schedule at the same log-SNR, and is told
    the time there. Outside the range of log-SNR that it was trained on it is told the end of that range, with one
    warning; or ``outside`` answers in its place, such as ``Wiener``. Calls are counted by the network's denoiser.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: Schedule,
        *,
        trained: Schedule | None = None,
        outside: Denoiser | None = None,
    ):
        self.denoiser, self.schedule, self.outside = denoiser, schedule, outside
        self.trained: Schedule = trained or denoiser.schedule  # pyrefly: ignore[missing-attribute]
        self._warned = False

    @property
    def nfe(self) -> int:
        """Calls of the network."""
        return getattr(self.denoiser, "nfe", 0)

    @property
    def network_evaluations(self) -> int:
        """Samples through the network."""
        return getattr(self.denoiser, "network_evaluations", 0)

    @cached_property
    def trained_range(self) -> tuple[float, float]:
        """The least and the greatest log-SNR that the network was trained on."""
        return trained_range(self.trained)

    def __call__(self, xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        """Prediction at a level of ``schedule`` for xt (n, ...)."""
        at, inside = self._own_level(level.log_snr)
        if not inside and self.outside is not None:
            return self.outside(xt, level, cond)
        # the two agree inside the range; outside, the larger part of xt keeps the size that the network knows
        scale = at.sigma / level.sigma if level.log_snr < 0 else at.alpha / level.alpha
        said = self.denoiser(xt * scale, at, cond)
        if inside or level.sigma == 0:
            return said
        self._warn(level)
        return Prediction(said.x0, (xt - level.alpha * said.x0) / level.sigma)

    def _own_level(self, log_snr: float) -> tuple[Level, bool]:
        """The level of the network's schedule at a log-SNR, or at the end of its range, and whether it is inside."""
        low, high = self.trained_range
        nearest = min(max(log_snr, low), high)
        inside = nearest == log_snr or abs(nearest - log_snr) < 1e-9 * (1 + abs(log_snr))
        return levels_of(self.trained, [nearest])[0], inside

    def _warn(self, level: Level) -> None:
        if not self._warned:
            low, high = self.trained_range
            warnings.warn(
                f"log-SNR {level.log_snr:.4g} is outside the range ({low:.4g}, {high:.4g}) that the network was "
                "trained on: it is told the end of the range; start and end inside, or pass outside=",
                stacklevel=3,
            )
        self._warned = True


@dataclass(frozen=True)
class Wiener:
    """The best linear denoiser of data with a ``mean`` and a ``variance``: numbers, or tensors like one sample."""

    mean: Tensor | float
    variance: Tensor | float

    def __call__(self, xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        total = level.alpha**2 * self.variance + level.sigma**2
        away = (xt - level.alpha * self.mean) / total
        return Prediction(self.mean + level.alpha * self.variance * away, level.sigma * away)
