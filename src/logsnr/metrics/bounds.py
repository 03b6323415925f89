"""Confidence intervals of shares and means, by scipy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats
from torch import Tensor

from logsnr.core.errors import InputError

Interval = tuple[float, float]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's two-sided interval of a share of ``n`` trials.

    Raises:
        InputError: n < 1, successes outside [0, n], or confidence outside (0, 1).
    """
    _check_share(successes, n, confidence)
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def clopper_pearson_upper(successes: int, n: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a share of ``n`` trials.

    Raises:
        InputError: n < 1, successes outside [0, n], or confidence outside (0, 1).
    """
    _check_share(successes, n, confidence)
    test = stats.binomtest(successes, n, alternative="less")
    return float(test.proportion_ci(confidence, method="exact").high)


def corrected_share(share: float, true_rate: float, false_rate: float) -> float | None:
    """A share as an imperfect judge sees it, corrected for its errors, within [0, 1] (Rogan and Gladen 1978).

    ``true_rate`` is how often it recognises what is there, ``false_rate`` how often it sees it in something else; None
    where it cannot tell them apart.
    """
    if true_rate <= false_rate:
        return None
    return min(1.0, max(0.0, (share - false_rate) / (true_rate - false_rate)))


def bootstrap_interval(
    values: Tensor, *, seed: int = 0, num_resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of the mean of values (n,).

    Raises:
        InputError: fewer than two values, a value that is not finite, no resamples, or confidence outside (0, 1).
    """
    return _bootstrap((_column(values),), np.mean, seed, num_resamples, confidence)


def paired_bootstrap_ratio(
    a: Tensor, b: Tensor, *, seed: int = 0, num_resamples: int = 2000, confidence: float = 0.95
) -> Interval:
    """Percentile bootstrap interval of mean(a) / mean(b); a and b (n,) are of the same items, resampled as pairs.

    Raises:
        InputError: as ``bootstrap_interval``; columns of different length; a mean of b whose own interval holds 0.
    """
    if a.shape != b.shape:
        raise InputError(f"{len(a)} and {len(b)} values are no pairs: measure both on the same items")

    def ratio(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.mean(first, axis) / np.mean(second, axis)

    below, above = bootstrap_interval(b, seed=seed, num_resamples=num_resamples, confidence=confidence)
    if below <= 0 <= above:
        raise InputError("a ratio to a mean that may be 0 has no interval: compare differences instead")
    return _bootstrap((_column(a), _column(b)), ratio, seed, num_resamples, confidence)


def t_interval(values: Tensor, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of a few normal values (n,), such as paired differences by seed.

    Raises:
        InputError: fewer than two values, a value that is not finite, or confidence outside (0, 1).
    """
    _check_confidence(confidence)
    column = _column(values)
    low, high = stats.t.interval(confidence, len(column) - 1, column.mean(), stats.sem(column))
    return float(low), float(high)


def _bootstrap(
    columns: tuple[np.ndarray, ...],
    statistic: Callable[..., np.ndarray],
    seed: int,
    num_resamples: int,
    confidence: float,
) -> Interval:
    _check_confidence(confidence)
    if num_resamples < 1:
        raise InputError(f"num_resamples is {num_resamples}: a bootstrap needs at least 1, better 1000")
    interval = stats.bootstrap(
        columns,
        statistic,
        n_resamples=num_resamples,
        batch=100,
        vectorized=True,
        paired=len(columns) > 1,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _column(values: Tensor) -> np.ndarray:
    column = values.detach().cpu().double().numpy()
    if column.ndim != 1 or len(column) < 2 or not np.isfinite(column).all():
        raise InputError(f"an interval needs at least 2 finite values in one column, not shape {column.shape}")
    return column


def _check_share(successes: int, n: int, confidence: float) -> None:
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"{successes} of {n} is no share: use 0 <= successes <= n and at least one trial")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: it must lie between 0 and 1, as 0.95 does")
