"""A noise schedule: alpha and sigma as functions of time, and back from log-SNR to time. Coefficients are float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level


class Schedule(Protocol):
    """alpha(t), sigma(t) and log_snr(t) for t in [0, 1], t = 0 data and t = 1 noise; log_snr falls strictly.

    A member is a law of log-SNR over time, ``log_snr`` and its inverse ``t_of``, and a rule that scales it,
    ``coefficients``; the rest follows. The forward process is dx = drift(t) x dt + diffusion(t) dw.
    """

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), float64, shaped like t; infinite at exact ends."""
        ...

    def t_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the schedule has a log-SNR: the inverse of ``log_snr``."""
        ...

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma where the schedule has a log-SNR (float64), also beyond its ends; each shaped like it."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data, float64, shaped like t."""
        return self.coefficients(self.log_snr(t))[0]

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise, float64, shaped like t."""
        return self.coefficients(self.log_snr(t))[1]

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), half of ``log_snr``."""
        return self.log_snr(t) / 2

    def drift(self, t: Tensor) -> Tensor:
        """d log(alpha) / dt, float64, shaped like t."""
        return _slope(lambda u: self.alpha(u).log(), t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The g of the forward process: g^2 = -sigma^2 d log_snr / dt, float64, shaped like t."""
        return self.sigma(t) * (-_slope(self.log_snr, t)).sqrt()

    @property
    def t_min(self) -> float:
        """The least time at which a network of this schedule was trained: 0, or that of a chain's first timestep."""
        return 0.0

    @property
    def prior_std(self) -> float:
        """Standard deviation of the noise at t = 1."""
        return self.sigma(torch.ones((), dtype=torch.float64)).item()

    def level(self, t: float) -> Level:
        """The level at one time.

        Raises:
            InputError: t is outside [0, 1].
        """
        return levels_at(self, [float(t)])[0]


def _slope(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The derivative of an elementwise function, by autograd."""
    with torch.enable_grad():
        points = t.detach().double().requires_grad_()
        return torch.autograd.grad((function(points) + 0 * points).sum(), points)[0]  # constants have a slope too


def levels_at(schedule: Schedule, times: Sequence[float]) -> list[Level]:
    """The levels of a schedule at times in [0, 1], all at once.

    Raises:
        InputError: a time is outside [0, 1], or sigma is infinite there.
    """
    for t in times:
        if not 0 <= t <= 1:
            raise InputError(f"time {t} is outside [0, 1]: 0 is data, 1 is noise")
    points = torch.tensor(times, dtype=torch.float64)
    return _levels(points, schedule.alpha(points), schedule.sigma(points))


def levels_of(schedule: Schedule, log_snr: Sequence[float]) -> list[Level]:
    """The levels of a schedule at values of log-SNR, all at once; outside its range t leaves [0, 1].

    Raises:
        InputError: sigma is infinite there.
    """
    points = torch.tensor(log_snr, dtype=torch.float64)
    return _levels(schedule.t_of(points), *schedule.coefficients(points))


def trained_range(schedule: Schedule) -> tuple[float, float]:
    """The least and the greatest log-SNR that a network of a schedule was trained on; infinite at exact ends."""
    low, high = schedule.log_snr(torch.tensor([1.0, schedule.t_min], dtype=torch.float64)).tolist()
    return low, high


def warn_outside(schedule: Schedule, levels: Sequence[Level]) -> None:
    """Warn once of noisy levels outside the range that a network was trained on: it is told the end of that range."""
    low, high = trained_range(schedule)
    margin = 1e-3  # the levels of other programs are rounded
    outside = [at.log_snr for at in levels if at.sigma and not low - margin <= at.log_snr <= high + margin]
    if outside:
        warnings.warn(
            f"log-SNR {outside[0]:.4g} is outside the range ({low:.4g}, {high:.4g}) that the network was trained on: "
            "it is told the end of that range; visit levels inside it",
            stacklevel=3,
        )


def _levels(*columns: Tensor) -> list[Level]:
    levels = [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
    for level in levels:
        if not math.isfinite(level.sigma):
            raise InputError(f"sigma is infinite at t = {level.t:g} in a schedule of alpha = 1: choose a time below")
    return levels
