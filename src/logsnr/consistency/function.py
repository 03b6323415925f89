"""The consistency function of any network as a table: one row a noise level, two numbers each for sample and output.

Training and sampling both use this one function; see ``schedules.boundary`` for its formula.
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
from logsnr.schedules.boundary import Boundary
from logsnr.schedules.prediction import x0_weights
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
        output = network(inputs, self.timesteps.to(x.device)[places].to(x.dtype), **(cond or {}))
        return self.combine(x, output, places)

    def combine(self, x: Tensor, output: Tensor, places: Tensor) -> Tensor:
        """The same from what the network said."""
        return _column(self.of_sample, places, x) * x + _column(self.of_output, places, x) * output

    def sigma(self, places: Tensor, like: Tensor) -> Tensor:
        """s of each row, shaped to multiply samples."""
        return _column(self.sigmas, places, like)


def consistency_levels(config: Mapping[str, Any], boundary: Boundary, sigmas: Sequence[float]) -> Levels:
    """The table of these noise levels for a network with this diffusers scheduler configuration.

    Raises:
        InputError: a level is below the least.
    """
    if min(sigmas) < boundary.sigma_min * (1 - 1e-9):
        raise InputError(f"noise {min(sigmas):.4g} is below the least, {boundary.sigma_min:.4g}: sample above it")
    own = levels_of(scheduler_config.from_scheduler_config(config), [-2 * math.log(s) for s in sigmas])
    rows = [_row(config, boundary, s, level) for s, level in zip(sigmas, own, strict=True)]
    return Levels(*torch.tensor(rows, dtype=torch.float64).T.unbind())


def _row(config: Mapping[str, Any], boundary: Boundary, s: float, level: Level) -> tuple[float, ...]:
    of_xt, of_output = x0_weights(scheduler_config.kind_of(config), level)
    of_x, of_clean = boundary.weights(s)
    told = scheduler_config.timestep_of(config, level)
    return s, level.alpha, told, of_x + of_clean * of_xt * level.alpha, of_clean * of_output


def _column(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Numbers of rows, shaped to multiply samples."""
    return values.to(like.device)[places].to(like.dtype).view(-1, *[1] * (like.dim() - 1))
