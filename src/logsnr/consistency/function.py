"""The consistency function of any network: clean data from one call, and exactly the sample itself at the least noise.

With s = sigma / alpha, x = xt / alpha and the network's estimate D(x, s) of clean data, whatever it predicts,

    f(x, s) = c_skip x + (1 - s_min / s) (D - e_skip x),
    c_skip = d^2 / ((s - s_min)^2 + d^2),  e_skip = d^2 / (s^2 + d^2).

For EDM's D = e_skip x + e_out F that is c_skip x + c_out F of 2303.01469; for s well above s_min it is D. Training and
sampling both use this one function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules import scheduler_config
from logsnr.schedules.prediction import EDMOutput, Kind, x0_weights
from logsnr.schedules.schedule import levels_of


@dataclass(frozen=True)
class Levels:
    """A row for each noise level s (n,): what the network is told, and f = of_sample x + of_output output."""

    sigmas: Tensor
    input_scale: Tensor
    timesteps: Tensor
    of_sample: Tensor
    of_output: Tensor

    def __len__(self) -> int:
        return len(self.sigmas)

    def __call__(
        self, network: Callable[..., Tensor], x: Tensor, places: Tensor, cond: Mapping[str, Any] | None = None
    ) -> Tensor:
        """f of samples x (n, ...) at the levels of these places (n,)."""
        inputs = _column(self.input_scale, places, x) * x
        output = network(inputs, self.timesteps[places].to(x), **(cond or {}))
        return self.combine(x, output, places)

    def combine(self, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
        """The same from what the network said."""
        return _column(self.of_sample, places, x) * x + _column(self.of_output, places, x) * output

    def sigma(self, places: Tensor, like: Tensor) -> Tensor:
        """s of each row, shaped to multiply samples."""
        return _column(self.sigmas, places, like)


@dataclass(frozen=True)
class Coordinates:
    """How a network reads noise: its own level at s, what it predicts, and what it is told.

    ``config`` is a diffusers scheduler's configuration; without one, the network has EDM's preconditioning and is told
    250 ln s, as consistency models are (2303.01469).
    """

    config: Mapping[str, Any] | None = None
    sigma_min: float = 0.002
    sigma_data: float = 0.5

    def levels(self, sigmas: Sequence[float]) -> Levels:
        """The table of these noise levels.

        Raises:
            InputError: a level is below the least.
        """
        if min(sigmas) < self.sigma_min * (1 - 1e-9):
            raise InputError(f"noise {min(sigmas):.4g} is below the least, {self.sigma_min:.4g}: sample above it")
        rows = [self._row(s, level) for s, level in zip(sigmas, self._own(sigmas), strict=True)]
        return Levels(*torch.tensor(rows, dtype=torch.float64).T.unbind())

    def _own(self, sigmas: Sequence[float]) -> list[Level]:
        """The levels in the scale that the network reads."""
        if self.config is None:
            return [Level(0.0, 1.0, s) for s in sigmas]
        schedule = scheduler_config.from_scheduler_config(self.config)
        return levels_of(schedule, [-2 * math.log(s) for s in sigmas])

    def _row(self, s: float, level: Level) -> tuple[float, ...]:
        kind: Kind = EDMOutput(self.sigma_data) if self.config is None else scheduler_config.kind_of(self.config)
        of_xt, of_output = x0_weights(kind, level)
        data, above = self.sigma_data**2, s - self.sigma_min
        gate, skip = above / s, data / (above**2 + data)
        of_sample = skip + gate * (of_xt * level.alpha - data / (s**2 + data))
        if self.config is None:
            scale, told = 1 / math.hypot(s, self.sigma_data), 250 * math.log(s + 1e-44)
        else:
            scale, told = level.alpha, scheduler_config.timestep_of(self.config, level)
        return s, scale, told, of_sample, gate * of_output


def _column(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Numbers of rows, shaped to multiply samples."""
    return values.to(like.device)[places].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
