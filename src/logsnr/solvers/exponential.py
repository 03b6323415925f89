"""Exponential integrators of the backward SDE family in log-SNR (2408.04221): orders 1 to 4, any rho, a corrector.

The step itself is three lines of tensors; ``weights`` computes its coefficients.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Denoiser, Level
from logsnr.schedules.curve import Curve
from logsnr.solvers.backward import Rho, check_rho, is_noisy, rho_of_step
from logsnr.solvers.weights import Array, StepWeights, combine, step_weights

LinearPart = Literal["x0", "eps", "F"] | Curve


@dataclass(frozen=True)
class Memory:
    """What a step leaves to the next: how many were done, the newest evaluations first, and where it came from."""

    step: int = 0
    history: tuple[tuple[Level, Tensor], ...] = ()
    before: tuple[Level, Tensor, Tensor | None] | None = None


@dataclass(frozen=True)
class Exponential:
    """The solver of the given order; a pure function of its arguments.

    ``rho`` is the noise multiplier: a number, one a step, a function of log(alpha / sigma), or a preset; above 0 a step
    needs noise. ``variant`` "heun" integrates the polynomial exactly, "midpoint" is what diffusers' multistep
    DPM-Solver++ does at order 2. ``corrector`` repairs a sample with the evaluation that was made there, at no call.
    ``linear`` says what the polynomial is of: clean data ("x0"), noise ("eps", as in DPM-Solver and DEIS), or x0 less
    a part that is linear in y and integrated exactly, that of EDM's F ("F") or the mean Jacobian of the denoiser,
    mmse / (d s^2), as a curve. ``mmse`` (per dimension, a curve) gives order 1 its optimal reverse variance
    (Analytic-DPM, 2201.06503).

    Raises:
        InputError: an order outside 1 to 4, a negative rho, or ``mmse`` above order 1, where it would count twice.
    """

    order: int = 2
    rho: Rho = 0.0
    variant: Literal["heun", "midpoint"] = "heun"
    corrector: bool = False
    linear: LinearPart = "x0"
    data_std: float = 1.0
    mmse: Curve | None = None

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"order is {self.order}: the exponential solver has order 1 to 4")
        check_rho(self.rho)
        if self.mmse is not None and (self.order > 1 or self.corrector):
            raise InputError("the optimal variance belongs to order 1: higher orders already hold it; drop mmse")

    @property
    def noisy(self) -> bool:
        """Whether steps draw noise."""
        return is_noisy(self.rho) or self.mmse is not None

    def __call__(
        self, denoiser: Denoiser, x: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        return self.advance(x, denoiser(x, here).x0, here, there, noise, memory)

    def advance(
        self, x: Tensor, x0: Tensor, here: Level, there: Level, noise: Tensor | None, memory: Memory | None
    ) -> tuple[Tensor, Memory]:
        """The sample at ``there`` from the clean estimate at ``here``, and the memory of it.

        Raises:
            InputError: the step needs noise and got none.
        """
        memory = memory or Memory()
        if self.corrector and memory.before:
            x = self._corrected(x, x0, here, memory)
        if there.sigma == 0:
            return there.alpha * x0, Memory(memory.step + 1, memory.history)
        nodes = ((here, self._residual(x, x0, here)), *memory.history)[: self.order]
        moved = moved_by(self.weights(here, there, nodes, memory.step), x, nodes, noise)
        kept = nodes if here.alpha else ()
        return moved, Memory(memory.step + 1, kept, (here, x, noise) if self.corrector and here.alpha else None)

    def weights(self, here: Level, there: Level, nodes: Any, step: int) -> StepWeights:
        """The weights of a step, from the levels of its nodes."""
        levels = tuple(node[0] for node in nodes) if here.alpha else (here,)
        rho = rho_of_step(self.rho, step)
        found = step_weights(here, there, levels, rho, self._part, self.variant == "midpoint")
        if self.mmse is None or here.alpha == 0:
            return found
        extra = found.values[0] ** 2 * float(self.mmse(here.log_ratio))
        return StepWeights(found.linear, found.values, math.sqrt(found.noise**2 + extra))

    def _corrected(self, x: Tensor, x0: Tensor, here: Level, memory: Memory) -> Tensor:
        """The step to ``here`` again, now with the evaluation at its end among the nodes."""
        assert memory.before is not None
        start, x_start, noise = memory.before
        nodes = ((here, self._residual(x, x0, here)), *memory.history[: max(self.order - 1, 1)])
        levels, rho = tuple(node[0] for node in nodes), rho_of_step(self.rho, memory.step - 1)
        return moved_by(step_weights(start, here, levels, rho, self._part), x_start, nodes, noise)

    def _residual(self, x: Tensor, x0: Tensor, here: Level) -> Tensor:
        """x0 without its linear part."""
        if self.linear == "x0" or here.alpha == 0:
            return x0
        part = self._part
        share = float(part(np.asarray(here.log_ratio))) if callable(part) else part
        return x0 - share / here.alpha * x

    @cached_property
    def _part(self) -> float | Callable[[Array], Array]:
        if isinstance(self.linear, Curve):
            return self.linear
        if self.linear == "F":
            return _EDMPart(self.data_std)
        return 1.0 if self.linear == "eps" else 0.0


@dataclass(frozen=True)
class _EDMPart:
    """The skip connection of EDM: data_std^2 / (data_std^2 + s^2)."""

    data_std: float

    def __call__(self, log_ratio: Array) -> Array:
        return 1 / (1 + np.exp(-2 * log_ratio) / self.data_std**2)


def check_coarse(order: int, linear: LinearPart, grid: str, steps: int) -> None:
    """Warn of solvers that few steps on a grid equal in log-SNR ("log-snr") or of Karras ("karras") make worse."""
    enough = {"karras": 10, "log-snr": 10, "log-snr-early": 8}.get(grid, 0)
    if steps < enough and (order > 2 or isinstance(linear, Curve)):
        solver = f"order {order}" if order > 2 else "a curve as linear part"
        warnings.warn(
            f"{solver} on the grid {grid} extrapolates far with {steps} evaluations and often has more error than "
            f"order 2: use order 2, the grid tangent, a calibrated table, or {enough} evaluations and more",
            stacklevel=3,
        )


def moved_by(weights: StepWeights, x: Tensor, nodes: Sequence[tuple[Level, Tensor]], noise: Tensor | None) -> Tensor:
    """The step from x, with the evaluations of its nodes."""
    first, *history = (value for _, value in nodes)
    return combine(weights, x, first, history, noise)
