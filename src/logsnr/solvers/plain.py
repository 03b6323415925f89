"""Well-known solvers beside the exponential ones, each a pure function of (denoiser, x, here, there, noise, memory)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level, Prediction
from logsnr.schedules.schedule import Schedule, levels_of
from logsnr.solvers.kernel import kernel_step
from logsnr.solvers.weights import polynomial_weights

Frame = Literal["ve", "flow"]


@dataclass(frozen=True)
class DDIM:
    """DDIM (2010.02502): a kernel of standard deviation eta sigma sqrt(1 - e^{-2h}); eta 0 is deterministic."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta is {self.eta}: DDIM takes a number from 0 to 1")

    @property
    def noisy(self) -> bool:
        """Whether steps draw noise."""
        return self.eta > 0

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Any
    ) -> tuple[Tensor, None]:
        x0 = denoiser(x, here).x0
        spread = math.sqrt(-math.expm1(2 * (here.log_ratio - there.log_ratio))) if there.sigma else 0.0
        return kernel_step(x, x0, here, there, self.eta * there.sigma * spread, noise), None


@dataclass(frozen=True)
class Heun:
    """Euler (one call) or Heun (two calls, one in the last step) in plain coordinates, with EDM's churn (2206.00364).

    ``frame`` "ve" steps x / alpha in sigma / alpha, "flow" steps x / (alpha + sigma) in sigma / (alpha + sigma). From
    infinite noise "ve" takes one Euler step of the other.
    ``churn`` first raises sigma / alpha of a step by that share, between ``churn_min`` and ``churn_max``, along the
    ``schedule`` that the denoiser was trained on.
    """

    frame: Frame = "ve"
    euler: bool = False
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise_scale: float = 1.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        if self.churn < 0 or (self.churn and self.frame == "flow"):
            raise InputError(f"churn is {self.churn}: it must be at least 0, and belongs to the frame ve")
        if self.churn and self.schedule is None:
            raise InputError("churn visits levels of its own: pass the schedule of the denoiser")

    @property
    def noisy(self) -> bool:
        """Whether steps draw noise."""
        return self.churn > 0

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Any
    ) -> tuple[Tensor, None]:
        if self.churn and here.alpha and self.churn_min <= here.sigma / here.alpha <= self.churn_max:
            x, here = self._churned(x, here, noise)
        frame: Frame = self.frame if here.alpha else "flow"
        kept, way = slope_weights(here, there, frame)
        slope = _slope(denoiser(x, here), frame)
        moved = kept * x + way * slope
        if self.euler or not there.sigma or frame != self.frame:
            return moved, None
        return kept * x + way / 2 * (slope + _slope(denoiser(moved, there), frame)), None

    def _churned(self, x: Tensor, here: Level, noise: Tensor | None) -> tuple[Tensor, Level]:
        if noise is None:
            raise InputError("churn needs noise: pass one standard normal tensor a step")
        assert self.schedule is not None
        raised = levels_of(self.schedule, [here.log_snr - 2 * math.log1p(self.churn)])[0]
        added = here.sigma / here.alpha * math.sqrt((1 + self.churn) ** 2 - 1)
        return raised.alpha * (x / here.alpha + self.noise_scale * added * noise), raised


def frame_scale(level: Level, frame: Frame) -> float:
    """What x is divided by in a frame."""
    return level.alpha if frame == "ve" else level.alpha + level.sigma


def slope_weights(here: Level, there: Level, frame: Frame) -> tuple[float, float]:
    """Factors of x and of the slope in an Euler step; the slope is eps in "ve", eps - x0 in "flow"."""
    kept = frame_scale(there, frame) / frame_scale(here, frame)
    return kept, there.sigma - kept * here.sigma


def _slope(found: Prediction, frame: Frame) -> Tensor:
    return found.eps if frame == "ve" else found.eps - found.x0


@dataclass(frozen=True)
class Angle:
    """Adams-Bashforth on EDM's F in the angle atan2(sigma, data_std alpha): finite at both ends, no case is special.

    With z = x / sqrt(sigma^2 + data_std^2 alpha^2) the probability-flow ODE is dz / dangle = -F.
    """

    order: int = 2
    data_std: float = 1.0
    noisy = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"order is {self.order}: the angle solver has order 1 to 4")

    def __call__(
        self,
        denoiser: Denoiser,
        x: Tensor,
        here: Level,
        there: Level,
        noise: Tensor | None,
        memory: tuple[tuple[float, Tensor], ...] | None,
    ) -> tuple[Tensor, tuple[tuple[float, Tensor], ...]]:
        found, scale = denoiser(x, here), self._scale(here)
        raised = here.sigma / (self.data_std * scale) * found.x0 - self.data_std * here.alpha / scale * found.eps
        history = ((self._angle(here), raised), *(memory or ()))[: self.order]
        weights = polynomial_weights([angle for angle, _ in history], self._angle(there))
        z = x / scale
        for weight, (_, value) in zip(weights, history, strict=True):
            z = z - weight * value
        return z * self._scale(there), history

    def _angle(self, level: Level) -> float:
        return math.atan2(level.sigma, self.data_std * level.alpha)

    def _scale(self, level: Level) -> float:
        return math.hypot(level.sigma, self.data_std * level.alpha)
