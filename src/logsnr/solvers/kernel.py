"""The non-Markovian variational model (after 2408.04221): kernels that keep every marginal, and its bound.

q(x_1 | x_0, x0) = N(alpha_1 x0 + sqrt(sigma_1^2 - k^2) (x_0 - alpha_0 x0) / sigma_0, k^2) for any kernel_std k in
[0, sigma_1], from level 0 (here) to level 1 (there). Its step equals the exponential step of ``rho_of_kernel_std``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.curve import Curve
from logsnr.solvers.backward import kernel_std_of_rho


def kernel_step(x: Tensor, x0: Tensor, here: Level, there: Level, kernel_std: float, noise: Tensor | None) -> Tensor:
    """One draw of the kernel, x0 (n, ...) being known or estimated; x and noise are shaped like it.

    Raises:
        InputError: kernel_std outside [0, sigma], or noise that is needed and missing.
    """
    kept = _kept(here, there, kernel_std)
    moved = kept * x + (there.alpha - kept * here.alpha) * x0
    if not kernel_std:
        return moved
    if noise is None:
        raise InputError("a kernel with kernel_std > 0 needs noise: pass one standard normal tensor a step")
    return moved + kernel_std * noise


def kernel_kl(here: Level, there: Level, kernel_std: float, error: float) -> float:
    """The step's share of the variational bound in nats, for a squared error E|x0 - estimate|^2 summed over dimensions.

    Infinite at kernel_std = 0, where the model becomes a transport.
    """
    if kernel_std == 0:
        return math.inf
    gain = there.alpha - here.alpha * _kept(here, there, kernel_std)
    return gain**2 / (2 * kernel_std**2) * error


def kernel_bound(levels: Sequence[Level], rho: float, mmse: Curve) -> float:
    """The sum of ``kernel_kl`` over the noisy levels of a grid at kernels of rho; ``mmse`` summed over dimensions."""
    total = 0.0
    for here, there in pairwise(levels):
        step = there.log_ratio - here.log_ratio
        std = kernel_std_of_rho(rho, there.sigma, step)
        total += kernel_kl(here, there, std, float(mmse(here.log_ratio)))
    return total


def optimal_variance(here: Level, there: Level, kernel_std: float, mmse: float) -> float:
    """The best isotropic variance of the reverse step (2201.06503): k^2 + c^2 mmse, mmse per dimension at ``here``."""
    gain = there.alpha - here.alpha * _kept(here, there, kernel_std)
    return kernel_std**2 + gain**2 * mmse


def _kept(here: Level, there: Level, kernel_std: float) -> float:
    """The factor of x_here."""
    if not 0 <= kernel_std <= there.sigma:
        raise InputError(f"kernel_std is {kernel_std:g}: it must lie between 0 and the sigma that it leads to")
    return math.sqrt((there.sigma - kernel_std) * (there.sigma + kernel_std)) / here.sigma
