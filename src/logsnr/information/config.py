"""How to measure information; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class InformationConfig:
    """The budget of an information profile: network calls, of at most ``batch_size`` samples each."""

    calls: int = 1200
    """Network calls in all, the price of the run; a model with labels takes two a measurement, with and without."""
    batch_size: int = 64
    """Samples in one call."""
    curve_levels: int = 40
    """Levels of log-SNR at which the error curve is measured, equally spaced."""
    curve_batches: int = 3
    """Batches that every level of the curve sees; what is left of the calls goes into the integrals."""
    levels: int = 40
    """Random levels, drawn where the integrand is large, in the integrals of each sample."""
    ode_steps: int = 20
    """Steps of the likelihood by the probability-flow ODE on one batch, four calls with gradients each; 0: none."""
    seed: int = 0
    """Seed of the noise, of the levels and of the choice of data."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.curve_levels, self.curve_batches, self.levels) < 2:
            raise InputError("an information profile needs at least 2 levels, batches and samples a batch: raise them")
        if self.ode_steps < 0:
            raise InputError(f"ode_steps is {self.ode_steps}: use 0 for no likelihood by the ODE, or more")
