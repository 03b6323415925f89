"""A noise schedule: alpha and sigma as functions of time, and back from log-SNR to time. Coefficients are float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level


class Schedule(Protocol):
    """alpha(t), sigma(t) and log_snr(t) for t in [0, 1], t = 0 data and t = 1 noise; log_snr falls strictly."""

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of the data, float64, shaped like t."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of the noise, float64, shaped like t."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2), float64, shaped like t; infinite at exact ends."""
        ...

    def t_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the schedule has a log-SNR: the inverse of ``log_snr``."""
        ...

    def level(self, t: float) -> Level:
        """The level at one time.

        Raises:
            InputError: t is outside [0, 1].
        """
        ...


def levels_at(schedule: Schedule, times: Sequence[float]) -> list[Level]:
    """The levels of a schedule at times in [0, 1], all at once.

    Raises:
        InputError: a time is outside [0, 1].
    """
    for t in times:
        if not 0 <= t <= 1:
            raise InputError(f"time {t} is outside [0, 1]: 0 is data, 1 is noise")
    points = torch.tensor(times, dtype=torch.float64)
    columns = (points, schedule.alpha(points), schedule.sigma(points))
    return [Level(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def level_of(schedule: Schedule, t: float) -> Level:
    """The level of a schedule at one time."""
    return levels_at(schedule, [float(t)])[0]


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler configuration belongs to a flow model: flow-match schedulers have no betas."""
    return config.get("prediction_type") == "flow_prediction" or ("shift" in config and "beta_start" not in config)
