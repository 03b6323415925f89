"""The backward SDE family (2408.04221) and the names that its noise multiplier rho has elsewhere.

dx = [f x - (1 + rho^2)/2 g^2 score] dt + rho g dw, run from noise to data, has the same marginals for every rho(t):
rho = 0 is the probability-flow ODE, rho = 1 the reverse SDE. With y = x / alpha and l = log(alpha / sigma) it reads
dy = (1 + rho^2)(x0 - y) dl + sqrt(2) rho e^{-l} dW. Below, h > 0 is a step in l.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from logsnr.core.errors import InputError
from logsnr.schedules.curve import Curve

Rho = float | str | Sequence[float] | Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""A number, the name of a preset, one number a step, or a function of log(alpha / sigma)."""

PRESETS: Mapping[str, float | Curve] = {
    "ode": 0.0,
    "sde": 1.0,
    "bump": Curve((-3.0, -2.0, 1.0, 3.0), (0.0, 1.0, 1.0, 0.0)),
}
"""``bump`` is noisy in the middle of the path only, where it repairs errors, and quiet at both ends."""


def check_rho(rho: Rho) -> None:
    """Refuse a noise multiplier that is negative, not finite, or no known preset.

    Raises:
        InputError: as said.
    """
    if isinstance(rho, str):
        if rho not in PRESETS:
            raise InputError(f"there is no rho preset {rho!r}: use a number, a list or one of {', '.join(PRESETS)}")
        return
    if callable(rho):
        return
    for value in rho if isinstance(rho, Sequence) else (rho,):
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"rho is {value}: the noise multiplier must be at least 0")


def rho_of_step(rho: Rho, step: int) -> float | Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """The multiplier within one step: a number or a function of log(alpha / sigma).

    Raises:
        InputError: a list shorter than the run.
    """
    if isinstance(rho, str):
        return PRESETS[rho]
    if isinstance(rho, Sequence):
        if step >= len(rho):
            raise InputError(f"rho lists {len(rho)} steps and there are more: give one value a step")
        return rho[step]
    return rho


def is_noisy(rho: Rho) -> bool:
    """Whether any step may draw noise."""
    if isinstance(rho, str):
        return rho != "ode"
    return any(rho) if isinstance(rho, Sequence) else callable(rho) or rho > 0


def eta_of_rho(rho: float, h: float) -> float:
    """DDIM's eta of a step h: eta^2 = (1 - e^{-2 rho^2 h}) / (1 - e^{-2 h}); tends to rho as h vanishes."""
    return math.sqrt(_renewed(rho, h) / -math.expm1(-2 * h))


def rho_of_eta(eta: float, h: float) -> float:
    """The inverse of ``eta_of_rho`` for eta in [0, 1]."""
    return math.sqrt(-math.log1p(eta**2 * math.expm1(-2 * h)) / (2 * h))


def churn_of_rho(rho: float, h: float) -> float:
    """EDM's churn of a step, gamma = S_churn / N = e^{rho^2 h} - 1 (2206.00364)."""
    return math.expm1(rho**2 * h)


def rho_of_churn(churn: float, h: float) -> float:
    """The inverse of ``churn_of_rho``."""
    return math.sqrt(math.log1p(churn) / h)


def sit_w_of_rho(rho: float, diffusion: float) -> float:
    """SiT's diffusion coefficient w(t) = rho^2 g^2 (2401.08740), from the schedule's ``diffusion`` g."""
    return (rho * diffusion) ** 2


def kernel_std_of_rho(rho: float, sigma: float, h: float) -> float:
    """The kernel's standard deviation whose step is that of rho: sigma sqrt(1 - e^{-2 rho^2 h}), sigma at its end."""
    return sigma * math.sqrt(_renewed(rho, h))


def rho_of_kernel_std(kernel_std: float, sigma: float, h: float) -> float:
    """The inverse of ``kernel_std_of_rho``; infinite where the kernel forgets the past (kernel_std = sigma)."""
    if kernel_std >= sigma:
        return math.inf
    return math.sqrt(-math.log1p(-((kernel_std / sigma) ** 2)) / (2 * h))


def _renewed(rho: float, h: float) -> float:
    """The share of the noise's variance that a step replaces; h may be infinite."""
    return -math.expm1(-2 * rho**2 * h) if rho else 0.0
