"""The error of a denoiser over log-SNR (2408.04221): a curve with standard errors, and what follows from it alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from logsnr.core.types import Denoiser, Level
from logsnr.schedules.curve import Curve, curve


@dataclass(frozen=True)
class MMSECurve:
    """E|x - E[x | x + s noise]|^2 at rising values of log-SNR, summed over ``dimension``, with standard errors."""

    log_snr: tuple[float, ...]
    mmse: tuple[float, ...]
    stderr: tuple[float, ...]
    dimension: int

    @cached_property
    def per_dimension(self) -> Curve:
        """Error per dimension over log(alpha / sigma): the reverse variance of order 1, and of entropic grids."""
        return curve([value / 2 for value in self.log_snr], [value / self.dimension for value in self.mmse])

    @cached_property
    def linear_part(self) -> Curve:
        """The mean Jacobian of the denoiser over log(alpha / sigma), mmse / (d s^2), at most 1."""
        rows = zip(self.log_snr, self.mmse, strict=True)
        shares = [min(error * math.exp(value) / self.dimension, 1.0) for value, error in rows]
        return curve([value / 2 for value in self.log_snr], shares)

    def information(self, low: float, high: float) -> float:
        """Mutual information gained between two values of log-SNR, half the integral of mmse over SNR, in nats."""
        points = np.unique(np.concatenate([np.linspace(low, high, 4001), self.log_snr]))
        points = points[(points >= low) & (points <= high)]
        errors = np.exp(np.interp(points, self.log_snr, np.log(np.maximum(self.mmse, 1e-300))))
        return float(np.trapezoid(0.5 * errors * np.exp(points), points))

    def fisher(self, log_snr: float) -> float:
        """Fisher information of x + s noise: d / s^2 - mmse / s^4."""
        snr = math.exp(log_snr)
        return self.dimension * snr - float(np.interp(log_snr, self.log_snr, self.mmse)) * snr**2


def mmse_curve(log_snr: Sequence[float], errors: Sequence[Tensor], dimension: int) -> MMSECurve:
    """The curve of squared errors (one tensor (n,) a value of log-SNR)."""
    means = tuple(float(values.mean()) for values in errors)
    spread = tuple(float(values.std() / math.sqrt(len(values))) for values in errors)
    return MMSECurve(tuple(log_snr), means, spread, dimension)


def squared_error(denoiser: Denoiser, x: Tensor, noise: Tensor, level: Level, cond: object = None) -> Tensor:
    """|x - x0|^2 (n,) in float64 of the denoiser on alpha x + sigma noise, summed over dimensions.

    Above log-SNR 0 it is taken from the noise, where nothing cancels.
    """
    found = denoiser(level.alpha * x + level.sigma * noise, level, cond)
    if level.log_snr > 0:
        away, scale = found.eps - noise, math.exp(-level.log_snr)
    else:
        away, scale = found.x0 - x, 1.0
    return scale * away.flatten(1).double().square().sum(1)


def noise_like(x: Tensor, draws: torch.Generator) -> Tensor:
    """Standard normal noise shaped like x, from a CPU generator."""
    return torch.randn(x.shape, generator=draws, dtype=x.dtype).to(x.device)
