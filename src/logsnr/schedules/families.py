"""Members of the signal-to-noise family. Each is a few lines; what a network was trained on is read from diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import UnsupportedError
from logsnr.core.types import Level
from logsnr.schedules.schedule import Schedule, is_flow, level_of


@dataclass(frozen=True)
class Flow:
    """Rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022, Lipman et al. 2022)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t.double()) - t.double().log())

    def t_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double() / 2)

    def level(self, t: float) -> Level:
        return level_of(self, t)


@dataclass(frozen=True)
class DiscreteVP:
    """A variance-preserving chain of N betas as diffusers trains it, made continuous: t = (k + 1) / N at timestep k.

    log(sigma / alpha) is linear in t between timesteps; below the first timestep sigma / alpha goes linearly to an
    exact 0 at t = 0.
    """

    betas: tuple[float, ...]

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        log_alpha_squared = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        log_ratio = 0.5 * (torch.log(-torch.expm1(log_alpha_squared)) - log_alpha_squared)
        return torch.arange(1, len(self.betas) + 1, dtype=torch.float64) / len(self.betas), log_ratio

    def _sigma_over_alpha(self, t: Tensor) -> Tensor:
        times, logs = self._table
        t = t.double()
        return torch.where(t < times[0], logs[0].exp() * t / times[0], _interpolate(t, times, logs).exp())

    def alpha(self, t: Tensor) -> Tensor:
        return (1 + self._sigma_over_alpha(t).square()).rsqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return self._sigma_over_alpha(t) * self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self._sigma_over_alpha(t).log()

    def t_of(self, log_snr: Tensor) -> Tensor:
        times, logs = self._table
        log_s = -log_snr.double() / 2
        below = times[0] * (log_s - logs[0]).exp()
        return torch.where(log_s < logs[0], below, _interpolate(log_s, logs, times))

    def level(self, t: float) -> Level:
        return level_of(self, t)


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising; constant outside."""
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = ((x - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return torch.lerp(ys[right - 1], ys[right], share)


def scaled_linear(num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> DiscreteVP:
    """Stable Diffusion's schedule: betas linear in their square root."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float32)
    return DiscreteVP(tuple(roots.square().double().tolist()))


def from_scheduler_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a network with this diffusers scheduler configuration was trained on.

    Raises:
        UnsupportedError: the configuration names a schedule that is not in the family yet.
    """
    if is_flow(config):
        return Flow()
    if config.get("rescale_betas_zero_snr"):
        raise UnsupportedError("rescale_betas_zero_snr is not supported yet: use a model without it")
    num_steps = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        return DiscreteVP(tuple(float(beta) for beta in config["trained_betas"]))
    if kind == "scaled_linear":
        return scaled_linear(num_steps, start, end)
    if kind == "linear":
        return DiscreteVP(tuple(torch.linspace(start, end, num_steps, dtype=torch.float32).double().tolist()))
    raise UnsupportedError(f"beta_schedule {kind!r} is not supported yet: use scaled_linear, linear or a flow model")
