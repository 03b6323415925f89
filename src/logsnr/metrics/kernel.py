"""Kernel distance between two sets of features: unbiased at any number of samples, unlike a Frechet distance."""

from __future__ import annotations

from torch import Tensor

from logsnr.core.errors import InputError


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Squared maximum mean discrepancy of features (n, d) and (m, d), float64, by (x.y / d + 1)^3.

    The unbiased estimate of 1801.01401, which can be negative; its mean is 0 where both are of one distribution.

    Raises:
        InputError: fewer than two rows, or rows of different lengths.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"features of {tuple(first.shape)} and {tuple(second.shape)} have no kernel distance: pass two rows or more"
        )
    first, second = first.double(), second.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(rows: Tensor) -> Tensor:
        found = kernel(rows, rows)
        return (found.sum() - found.trace()) / (len(rows) * (len(rows) - 1))

    return float(within(first) + within(second) - 2 * kernel(first, second).mean())
