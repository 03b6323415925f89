"""How to sample; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class SampleConfig:
    """Steps, grid, solver and guidance of a sampling run."""

    steps: int = 20
    """Evaluations of the network an image (a guided one counts once)."""
    guidance_scale: float = 2.0
    """Classifier-free guidance: 1 is none, more follows the prompt closer at the price of variety."""
    negative: str = ""
    """The prompt that guidance leads away from."""
    order: int = 2
    """Order of the solver, 1 or 2."""
    rho: float = 0.0
    """Noise multiplier of the backward SDE: 0 is the ODE, 1 the reverse SDE."""
    variant: Literal["heun", "midpoint"] = "midpoint"
    """How order 2 weighs its last two evaluations: exactly (heun), or as diffusers does by default (midpoint)."""
    grid: Literal["scheduler", "time", "log-snr", "karras"] = "scheduler"
    """Levels to visit: spaced as the model's scheduler says (read as DPM-Solver reads it), or from its schedule."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}: sampling needs at least 1 step")
        if self.order not in (1, 2):
            raise InputError(f"order is {self.order}: use 1 or 2")
        if not 0 <= self.rho < float("inf"):
            raise InputError(f"rho is {self.rho}: the noise multiplier must be at least 0")
        if not 0 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"guidance_scale is {self.guidance_scale}: use 1 for none, more to follow the prompt closer"
            )
