"""Losses of consistency training as pure functions (Dao et al. 2025, 2502.01441; Song and Dhariwal 2023, 2310.14189).

Squared errors are per sample: a mean over its elements, or their sum. A scale c is in the units of the root of that, so
the pseudo-Huber scale 0.00054 sqrt(D) of a sum is 0.00054 of a mean. One family holds all penalties; its power p is
0 for the square, 1/2 for pseudo-Huber, 1 for Cauchy and 2 for Geman-McClure.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from logsnr.consistency.config import Normalisation, Penalty, Reduction
from logsnr.core.errors import InputError

POWERS: dict[Penalty, float] = dict(zip(get_args(Penalty), (0.0, 0.5, 1.0, 2.0), strict=True))


def robust_penalty(sq_err: Tensor, c: float, power: float) -> Tensor:
    """p / (1 - p) ((1 + m / (2 p c^2))^(1 - p) - 1) of squared errors m; its limits at p = 0 and p = 1.

    Its slope falls as (m + 2 p c^2)^-p, so the larger the power, the less an outlier counts.

    Raises:
        InputError: c is not positive, or the power is negative.
    """
    if not c > 0 or power < 0:
        raise InputError(f"a penalty needs a positive scale and a power of at least 0: they are {c} and {power}")
    if power == 0:
        return sq_err / (2 * c**2)
    logarithm = torch.log1p(sq_err / (2 * power * c**2))
    return logarithm if power == 1 else power / (1 - power) * torch.expm1((1 - power) * logarithm)


def penalise(
    difference: Tensor,
    c: float,
    penalty: Penalty = "cauchy",
    *,
    reduction: Reduction = "mean",
    normalisation: Normalisation = "paper",
) -> Tensor:
    """The penalty of each sample's difference (n, ...) as (n,).

    ``reduction`` says what the squared error of a sample is; "elements" penalises each element and then takes the mean,
    for comparison. By the "paper" the square is m itself and pseudo-Huber sqrt(m + c^2) - c; "unit-curvature" makes
    every penalty m near zero, so that other weights keep their meaning when the penalty changes.
    """
    squares = difference.square().flatten(1)
    errors = {"mean": lambda: squares.mean(1), "sum": lambda: squares.sum(1), "elements": lambda: squares}[reduction]()
    found = robust_penalty(errors, c, POWERS[penalty]) * _factor(c, penalty, normalisation)
    return found.mean(1) if reduction == "elements" else found


def _factor(c: float, penalty: Penalty, normalisation: Normalisation) -> float:
    if normalisation == "unit-curvature" or penalty == "l2":
        return 2 * c**2
    return c if penalty == "huber" else 1.0


def small_sigma_mask(places: Tensor, num_levels: int, rate: float = 0.75) -> Tensor:
    """Which places (n,) on a grid from noise to data lie in its last part, from floor(rate N) on."""
    return places >= int(rate * num_levels)


def denoising_loss(
    denoised: Tensor,
    x0: Tensor,
    sigma: Tensor,
    mask: Tensor,
    *,
    sigma_data: float = 0.5,
    share: float | None = None,
) -> Tensor:
    """The mean over masked samples of (1/sigma^2 + 1/sigma_data^2) times the mean squared error; 0 if none is masked.

    ``denoised`` is what consistency training computes anyway at these levels (n,), so it costs no pass. With a
    ``share`` the sum is divided by that share of the rows, so many as are masked on average, in place of those that
    are.
    """
    weights = (sigma**-2 + sigma_data**-2) * mask
    errors = (denoised - x0).square().flatten(1).mean(1)
    count = mask.sum().clamp(min=1) if share is None else max(share * len(mask), 1e-12)
    return (weights * errors).sum() / count
