"""Members of the signal-to-noise family (2408.04221): a law of log-SNR over time, and a rule that scales it.

Solvers in log-SNR give the same path for every member; what differs is where a network was trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from logsnr.schedules.schedule import Schedule


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1: both follow from log_snr, and the ends are exact."""

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return log_snr.double().sigmoid().sqrt(), (-log_snr.double()).sigmoid().sqrt()


class Exploding(Schedule):
    """alpha = 1: sigma alone grows (variance exploding)."""

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(log_snr, dtype=torch.float64), (-log_snr.double() / 2).exp()


@dataclass(frozen=True)
class LinearVP(VariancePreserving):
    """Betas linear in continuous time: -2 log(alpha) = beta_min t + (beta_max - beta_min) t^2 / 2 (2011.13456)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def decay(self, t: Tensor) -> Tensor:
        """-2 log(alpha)."""
        return self.beta_min * t.double() + (self.beta_max - self.beta_min) / 2 * t.double().square()

    def time_of_decay(self, decay: Tensor) -> Tensor:
        """The inverse of ``decay``."""
        return 2 * decay / ((self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * decay).sqrt() + self.beta_min)

    def log_snr(self, t: Tensor) -> Tensor:
        return -self.decay(t).expm1().log()

    def t_of(self, log_snr: Tensor) -> Tensor:
        return self.time_of_decay((-log_snr.double()).exp().log1p())


@dataclass(frozen=True)
class SubVP(Schedule):
    """The alpha of ``LinearVP`` with sigma = 1 - alpha^2 (2011.13456)."""

    base: LinearVP = LinearVP()

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        noise = (-log_snr.double() / 2).exp()
        alpha = 2 / (noise + (noise.square() + 4).sqrt())
        return alpha, noise * alpha

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (2 * (self.base.decay(t) / 2).sinh()).log()

    def t_of(self, log_snr: Tensor) -> Tensor:
        return self.base.time_of_decay(2 * ((-log_snr.double() / 2).exp() / 2).asinh())


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """alpha = cos(a(t)) / cos(a(0)), a(t) = pi/2 (t + offset) / (1 + offset) (2102.09672); alpha(1) is exactly 0."""

    offset: float = 0.008

    @property
    def _rate(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    def log_snr(self, t: Tensor) -> Tensor:
        t, first = t.double(), self._rate * self.offset
        signal = (self._rate * (1 - t)).sin().square()
        return (signal / ((self._rate * t).sin() * (self._rate * t + 2 * first).sin())).log()

    def t_of(self, log_snr: Tensor) -> Tensor:
        first = self._rate * self.offset
        alpha, noise = log_snr.double().sigmoid().sqrt(), (-log_snr.double()).sigmoid()
        angle = torch.atan2((noise * math.cos(first) ** 2 + math.sin(first) ** 2).sqrt(), alpha * math.cos(first))
        return angle / self._rate - self.offset


@dataclass(frozen=True)
class Sigmoid(VariancePreserving):
    """alpha^2 falls along a logistic curve from ``start`` to ``end``, rescaled to go from 1 to 0 (2212.11972)."""

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    @property
    def _ends(self) -> tuple[float, float]:
        return self.start / self.temperature, self.end / self.temperature

    def log_snr(self, t: Tensor) -> Tensor:
        low, high = self._ends
        half = (high - low) / 2
        ratio = (half * (1 - t.double())).sinh() / (half * t.double()).sinh()
        return ratio.log() + math.log(math.cosh(low / 2) / math.cosh(high / 2))

    def t_of(self, log_snr: Tensor) -> Tensor:
        low, high = self._ends
        half = (high - low) / 2
        ratio = log_snr.double().exp() * (math.cosh(high / 2) / math.cosh(low / 2))
        return (math.sinh(half) / (ratio + math.cosh(half))).atanh() / half


@dataclass(frozen=True)
class LinearLogSNR(VariancePreserving):
    """log_snr falls linearly from ``first`` to ``last`` (the linear schedule of VDM, 2107.00630)."""

    first: float = 13.3
    last: float = -5.0

    def log_snr(self, t: Tensor) -> Tensor:
        return self.first + (self.last - self.first) * t.double()

    def t_of(self, log_snr: Tensor) -> Tensor:
        return (log_snr.double() - self.first) / (self.last - self.first)


@dataclass(frozen=True)
class Laplace(VariancePreserving):
    """log_snr is Laplace distributed when t is uniform (2407.03297)."""

    location: float = 0.0
    width: float = 0.5

    def log_snr(self, t: Tensor) -> Tensor:
        t = t.double()
        return self.location - self.width * torch.where(t < 0.5, (2 * t).log(), -(2 * (1 - t)).log())

    def t_of(self, log_snr: Tensor) -> Tensor:
        tail = 0.5 * (-((log_snr.double() - self.location) / self.width).abs()).exp()
        return torch.where(log_snr > self.location, tail, 1 - tail)


@dataclass(frozen=True)
class Cauchy(VariancePreserving):
    """log_snr is Cauchy distributed when t is uniform (2407.03297)."""

    location: float = 0.0
    width: float = 1.0

    def log_snr(self, t: Tensor) -> Tensor:
        t = t.double()
        return (
            self.location + self.width * (math.pi / 2 * (1 - 2 * t)).sin() / (math.pi * torch.minimum(t, 1 - t)).sin()
        )

    def t_of(self, log_snr: Tensor) -> Tensor:
        return torch.atan2(torch.tensor(self.width).double(), log_snr.double() - self.location) / math.pi


@dataclass(frozen=True)
class VE(Exploding):
    """alpha = 1 and sigma geometric from ``sigma_min`` to ``sigma_max`` (2011.13456)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + math.log(self.sigma_max / self.sigma_min) * t.double())

    def t_of(self, log_snr: Tensor) -> Tensor:
        return (-log_snr.double() / 2 - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class EDM(Exploding):
    """alpha = 1 and sigma along the Karras curve: sigma^(1/exponent) is linear in t (2206.00364)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    exponent: float = 7.0

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.exponent), self.sigma_max ** (1 / self.exponent)

    def log_snr(self, t: Tensor) -> Tensor:
        low, high = self._roots
        return -2 * self.exponent * (low + (high - low) * t.double()).log()

    def t_of(self, log_snr: Tensor) -> Tensor:
        low, high = self._roots
        return ((-log_snr.double() / (2 * self.exponent)).exp() - low) / (high - low)


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022, Lipman et al. 2022)."""

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return (log_snr.double() / 2).sigmoid(), (-log_snr.double() / 2).sigmoid()

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double()

    def sigma(self, t: Tensor) -> Tensor:
        return t.double()

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (torch.log1p(-t.double()) - t.double().log())

    def t_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr.double() / 2)


@dataclass(frozen=True)
class Trig(Schedule):
    """alpha = cos(pi t / 2) / data_std, sigma = sin(pi t / 2): TrigFlow (2410.11081); SiT's GVP at data_std 1."""

    data_std: float = 1.0

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        angle_snr = log_snr.double() + 2 * math.log(self.data_std)
        return angle_snr.sigmoid().sqrt() / self.data_std, (-angle_snr).sigmoid().sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        t = math.pi / 2 * t.double()
        return 2 * ((math.pi / 2 - t).sin().log() - t.sin().log() - math.log(self.data_std))

    def t_of(self, log_snr: Tensor) -> Tensor:
        return 2 / math.pi * ((-log_snr.double() / 2).exp() / self.data_std).atan()


@dataclass(frozen=True)
class DiscreteVP(VariancePreserving):
    """A variance-preserving chain of N betas as diffusers trains it, made continuous: t = (k + 1) / N at timestep k.

    log(sigma / alpha) is linear in t between timesteps; below the first timestep sigma / alpha goes linearly to an
    exact 0 at t = 0, and before a last beta of 1 alpha / sigma goes linearly to an exact 0 at t = 1.
    """

    betas: tuple[float, ...]

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        log_alpha_squared = torch.log1p(-torch.tensor(self.betas, dtype=torch.float64)).cumsum(0)
        log_noise = 0.5 * (torch.log(-torch.expm1(log_alpha_squared)) - log_alpha_squared)
        times = torch.arange(1, len(self.betas) + 1, dtype=torch.float64) / len(self.betas)
        finite = log_noise.isfinite()
        return times[finite], log_noise[finite]

    @property
    def t_min(self) -> float:
        return 1 / len(self.betas)

    def log_snr(self, t: Tensor) -> Tensor:
        times, logs = self._table
        t = t.double()
        log_s = torch.where(t < times[0], logs[0] + (t / times[0]).log(), _interpolate(t, times, logs))
        if times[-1] < 1:
            log_s = torch.where(t > times[-1], logs[-1] - ((1 - t) / (1 - times[-1])).log(), log_s)
        return -2 * log_s

    def t_of(self, log_snr: Tensor) -> Tensor:
        times, logs = self._table
        log_s = -log_snr.double() / 2
        low, high = times[0] * (log_s - logs[0]).exp(), 1 - (1 - times[-1]) * (logs[-1] - log_s).exp()
        inside = _interpolate(log_s, logs, times)
        return torch.where(log_s < logs[0], low, torch.where(log_s > logs[-1], high, inside))


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through (xs, ys), xs rising; constant outside."""
    right = torch.searchsorted(xs, x.detach().contiguous()).clamp(1, len(xs) - 1)
    share = ((x - xs[right - 1]) / (xs[right] - xs[right - 1])).clamp(0, 1)
    return torch.lerp(ys[right - 1], ys[right], share)


def scaled_linear(num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> DiscreteVP:
    """Stable Diffusion's schedule: betas linear in their square root."""
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_steps, dtype=torch.float32)
    return DiscreteVP(tuple(roots.square().double().tolist()))


def zero_terminal(base: DiscreteVP) -> DiscreteVP:
    """The chain whose alpha is shifted and scaled to end at exactly 0, its first kept (2305.08891)."""
    alphas = torch.log1p(-torch.tensor(base.betas, dtype=torch.float64)).cumsum(0).div(2).exp()
    rescaled = (alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1]))
    kept = torch.cat([rescaled[:1], rescaled[1:] / rescaled[:-1]]).square()
    return DiscreteVP(tuple((1 - kept).tolist()))


@dataclass(frozen=True)
class Derived(Schedule):
    """The law of log-SNR over time of another member; what derives from it changes the law or the scale."""

    base: Schedule

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t)

    def t_of(self, log_snr: Tensor) -> Tensor:
        return self.base.t_of(log_snr)

    @property
    def t_min(self) -> float:
        return self.base.t_min


@dataclass(frozen=True)
class ZeroTerminal(Derived, VariancePreserving):
    """A member with alpha shifted and scaled to go from 1 to exactly 0 (2305.08891, in continuous time)."""

    @property
    def _last(self) -> float:
        return float(self.base.alpha(torch.ones((), dtype=torch.float64)))

    def log_snr(self, t: Tensor) -> Tensor:
        alpha = (self.base.alpha(t) - self._last) / (1 - self._last)
        missing = self.base.sigma(t).square() / ((1 + self.base.alpha(t)) * (1 - self._last))
        return 2 * alpha.log() - missing.log() - alpha.log1p()

    def t_of(self, log_snr: Tensor) -> Tensor:
        alpha, noise = log_snr.double().sigmoid().sqrt(), (-log_snr.double()).sigmoid()
        missing = noise / (1 + alpha) * (1 - self._last)
        return self.base.t_of(2 * (1 - missing).log() - missing.log() - (2 - missing).log())


@dataclass(frozen=True)
class Shifted(Derived):
    """A member with its log_snr moved by -2 log(factor), on the same curve of (alpha, sigma): only time changes.

    Resolution shift (2301.11093) and the shift of SD3 (2403.03206) are this.
    """

    factor: float = 1.0

    def log_snr(self, t: Tensor) -> Tensor:
        return self.base.log_snr(t) - 2 * math.log(self.factor)

    def t_of(self, log_snr: Tensor) -> Tensor:
        return self.base.t_of(log_snr + 2 * math.log(self.factor))

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.coefficients(log_snr)


@dataclass(frozen=True)
class TotalVariance(Derived, VariancePreserving):
    """The log_snr of a member with any total standard deviation ``scale(log_snr)`` (2502.08598)."""

    scale: Callable[[Tensor], Tensor] = torch.ones_like

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale(log_snr.double())
        alpha, sigma = super().coefficients(log_snr)
        return scale * alpha, scale * sigma


@dataclass(frozen=True)
class InVE(Derived, Exploding):
    """The log_snr of a member at alpha = 1; of ``Cosine`` it is EDM's form of iDDPM."""


@dataclass(frozen=True)
class Preconditioned(Derived):
    """The log_snr of a member in the scale that EDM's networks read: unit variance for data of ``data_std``.

    alpha = c_in and sigma = c_in s, with s = sigma / alpha of the member (2206.00364).
    """

    data_std: float = 0.5

    def coefficients(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        return Trig(self.data_std).coefficients(log_snr)
