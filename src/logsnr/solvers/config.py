"""How to sample; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from logsnr.core.errors import InputError

_OF_A_TABLE = ("steps", "order", "rho", "corrector", "variant", "grid")


@dataclass(frozen=True)
class SampleConfig:
    """Steps, grid, solver and guidance of a sampling run.

    A ``solver`` table brings its own steps, order, rho, corrector, variant and grid. Any of these that differs from its
    default is refused beside one, not ignored: ``steps`` too, whatever the table has, for it is not read here.
    """

    steps: int = 20
    """Evaluations of the network an image (a guided one counts once)."""
    guidance_scale: float = 2.0
    """Classifier-free guidance: 1 is none, more follows the prompt closer at the price of variety."""
    negative: str = ""
    """The prompt that guidance leads away from."""
    safe: Literal["none", "weak", "medium", "strong", "max"] = "none"
    """Keep away from ``negative`` only where an image comes near it (2211.05105); costs half as much again."""
    order: int = 2
    """Order of the solver, 1 to 4: how many evaluations a step is computed from."""
    rho: float | Literal["ode", "sde", "bump"] | tuple[float, ...] = 0.0
    """Noise multiplier of the backward SDE: a number (0: the ODE), one a step, or ode (0), sde (1), bump (1 midway)."""
    corrector: bool = False
    """Repair each sample with the evaluation that is made there anyway; costs no further call."""
    variant: Literal["heun", "midpoint"] = "midpoint"
    """How order 2 weighs its last two evaluations: exactly (heun), or as diffusers does by default (midpoint)."""
    grid: Literal[
        "scheduler", "time", "log-snr", "log-snr-early", "karras", "beta", "tangent", "ays-sd", "ays-sdxl"
    ] = "scheduler"
    """Levels to visit: the model's own scheduler's, or spaced by a rule; flow models: scheduler, time or tangent."""
    solver: Path | None = None
    """A table of `logsnr calibrate`, or one that a world ships (fashion/5); it brings all of the above but guidance."""

    def __post_init__(self) -> None:
        given = [name for name in _OF_A_TABLE if getattr(self, name) != getattr(SampleConfig, name)]
        if self.solver and given:
            names = ", ".join(given)
            raise InputError(f"{names} cannot stand beside solver, whose table brings its own: drop {names}, or solver")
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}: sampling needs at least 1 step")
        if self.order not in (1, 2, 3, 4):
            raise InputError(f"order is {self.order}: use 1 to 4")
        self._check_rho()
        if self.safe != "none" and (not self.negative or self.guidance_scale <= 1):
            raise InputError("safe guidance needs a negative prompt to keep away from, and a guidance_scale above 1")
        if not 0 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"guidance_scale is {self.guidance_scale}: use 1 for none, more to follow the prompt closer"
            )

    def _check_rho(self) -> None:
        """Keep a list, as JSON has it, as a tuple; refuse what is no noise multiplier."""
        if isinstance(self.rho, str):
            return
        if isinstance(self.rho, list):
            object.__setattr__(self, "rho", tuple(self.rho))
        for value in self.rho if isinstance(self.rho, tuple) else (self.rho,):
            if isinstance(value, str) or not 0 <= value < float("inf"):
                raise InputError(f"rho is {value}: the noise multiplier must be at least 0")
        if isinstance(self.rho, tuple) and len(self.rho) != self.steps:
            raise InputError(f"rho lists {len(self.rho)} values for {self.steps} steps: give one a step")


@dataclass(frozen=True)
class CalibrateConfig:
    """How a solver table is found: trajectories, the reference, and what is compared."""

    steps: int = 10
    """Evaluations of the network an image, at most reference_steps: a table is for one number."""
    num_fit: int = 32
    """Start noises whose trajectories the coefficients are fitted on."""
    num_selection: int = 16
    """Further ones that choose among the fitted candidates, and judge every round of refinement."""
    num_gate: int = 16
    """Further ones, used for nothing else, on which the fit must beat the analytic solvers and `sample` as it is."""
    reference_steps: int = 60
    """Steps of the fine reference that everything is compared with (order 3, equal in log-SNR)."""
    grids: tuple[Literal["planned", "log-snr", "log-snr-early", "karras", "beta", "tangent"], ...] = (
        "planned",
        "tangent",
    )
    """Grids to fit on: "planned" is computed from the reference's local errors, the others are those of `sample`."""
    ridges: tuple[float, ...] = (1e-5,)
    """Strengths of the pull towards the analytic coefficients: the first for all grids, more for "planned" alone."""
    rounds: int = 2
    """Rounds of joint refinement of levels and coefficients, each about 3.5 num_fit steps^2 evaluations; 0: none."""
    rivals: int = 3
    """Analytic solvers at the gate on every grid, of 5: order 2 midpoint, heun, heun corrected, 1, 3 corrected."""
    seed: int = 4_000_000
    """Seed of the first start noise; the others count up from it, and should not be seeds that are served."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps > self.reference_steps:
            raise InputError(f"steps is {self.steps}: a table needs 1 to reference_steps ({self.reference_steps})")
        if min(self.num_fit, self.num_selection, self.num_gate) < 2 or not 1 <= self.rivals <= 5:
            raise InputError("calibration needs at least 2 trajectories for each of its sets, and 1 to 5 rivals")
        if self.rounds < 0:
            raise InputError(f"rounds is {self.rounds}: use 0 for no joint refinement, or more")
        if not self.grids or not self.ridges or min(self.ridges) <= 0:
            raise InputError("calibration needs at least one grid and positive ridges")
