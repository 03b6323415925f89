"""Exponential integrators of the backward SDE family in log-SNR (2408.04221), data-prediction form, order 1 and 2.

With l = log(alpha / sigma) the family dy = (1 + rho^2)(x0 - y) dl + sqrt(2) rho e^{-l} dW, y = x / alpha, has the same
marginals for every rho: rho = 0 is the probability-flow ODE, rho = 1 the reverse SDE. The linear part is exact; x0 is
a polynomial in l through the last evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level

Memory = tuple[Level, Tensor]


@dataclass(frozen=True)
class StepWeights:
    """One step in numbers: x_there = linear * x + current * x0 + previous * x0_previous + noise * n."""

    linear: float
    current: float
    previous: float
    noise: float


@dataclass(frozen=True)
class Exponential:
    """The solver of the given order; a pure function of its arguments.

    ``variant`` "heun" integrates the line through two evaluations exactly, "midpoint" is what diffusers' multistep
    DPM-Solver++ does by default. ``rho`` is the noise multiplier; above 0 a step needs noise.
    """

    order: int = 2
    rho: float = 0.0
    variant: Literal["heun", "midpoint"] = "heun"

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise InputError(f"order is {self.order}: the exponential solver has order 1 or 2")
        if not (self.rho >= 0 and math.isfinite(self.rho)):
            raise InputError(f"rho is {self.rho}: the noise multiplier must be at least 0")

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        x0 = denoiser(x, here).x0
        return self.advance(x, x0, here, there, noise, memory), (here, x0)

    def advance(
        self, x: Tensor, x0: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> Tensor:
        """The sample at ``there`` from the clean estimate at ``here``.

        Raises:
            InputError: the step needs noise and got none.
        """
        weights = step_weights(self, here, there, memory[0] if memory else None)
        x_there = weights.linear * x + weights.current * x0
        if memory and weights.previous:
            x_there = x_there + weights.previous * memory[1]
        if weights.noise:
            if noise is None:
                raise InputError("a step with rho > 0 needs noise: pass one standard normal tensor a step")
            x_there = x_there + weights.noise * noise
        return x_there


def step_weights(solver: Exponential, here: Level, there: Level, before: Level | None) -> StepWeights:
    """The weights of one step in float64; exact where sigma = 0 (the step returns x0) or alpha = 0 at the start."""
    if there.sigma == 0:
        return StepWeights(0.0, there.alpha, 0.0, 0.0)
    step, ratio = there.log_ratio - here.log_ratio, solver.rho**2
    if not step > 0:
        raise InputError(f"a step must lead to less noise, not from t = {here.t:g} to {there.t:g}: order the grid")
    decay = math.exp(-ratio * step) if ratio else 1.0
    total = (1 + ratio) * step
    first = -math.expm1(-total)
    noise = there.sigma * math.sqrt(-math.expm1(-2 * ratio * step)) if ratio else 0.0
    linear = there.sigma / here.sigma * decay
    if solver.order == 1 or before is None or before.alpha == 0:
        return StepWeights(linear, there.alpha * first, 0.0, noise)
    slope = _first_moment(total) if solver.variant == "heun" else first / 2
    share = slope * step / (here.log_ratio - before.log_ratio)
    return StepWeights(linear, there.alpha * (first + share), -there.alpha * share, noise)


def _first_moment(total: float) -> float:
    """The integral of H e^{-H (1 - c)} c over c in [0, 1]: 1 - (1 - e^{-H}) / H, by its series where that cancels."""
    if total < 1e-2:
        return total / 2 - total**2 / 6 + total**3 / 24 - total**4 / 120 + total**5 / 720
    return 1 + math.expm1(-total) / total
