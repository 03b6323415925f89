"""Frechet distance between Gaussians fitted to features, with a bootstrap error; no matrix square root is formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import generator


@dataclass(frozen=True)
class Moments:
    """Mean (d,), covariance (d, d) with divisor n - 1, both float64, and the number of samples."""

    mean: Tensor
    covariance: Tensor
    num: int


class StreamingMoments:
    """Mean and covariance of features that arrive in batches, accumulated in float64 about the first batch's mean."""

    def __init__(self) -> None:
        self._num = 0
        self._origin = self._sum = self._products = torch.empty(0, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features (n, d)."""
        features = features.detach().cpu().double()
        if not self._num:
            size = features.shape[1]
            self._origin = features.mean(0)
            self._sum, self._products = torch.zeros_like(self._origin), self._origin.new_zeros(size, size)
        centred = features - self._origin
        self._num += len(features)
        self._sum = self._sum + centred.sum(0)
        self._products = self._products + centred.T @ centred

    def moments(self) -> Moments:
        """The moments so far.

        Raises:
            InputError: fewer than two samples came.
        """
        if self._num < 2:
            raise InputError(f"a Frechet distance needs at least 2 images, not {self._num}: ask for more")
        shift = self._sum / self._num
        covariance = (self._products - self._num * torch.outer(shift, shift)) / (self._num - 1)
        return Moments(self._origin + shift, covariance, self._num)


def moments(features: Tensor) -> Moments:
    """Moments of features (n, d)."""
    stream = StreamingMoments()
    stream.update(features)
    return stream.moments()


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric
    (Dowson and Landau 1982), so singular covariances need no fudge.
    """
    return float(_distance(first, second, 0.0))


def frechet_to(features: Tensor, target: Moments) -> Tensor:
    """The distance of features (n, d), float64, to moments: a scalar with a gradient.

    Directions in which one of the two does not vary at all add no gradient.
    """
    mean = features.mean(0)
    centred = features - mean
    found = Moments(mean, centred.T @ centred / (len(features) - 1), len(features))
    return _distance(target, found, 1e-12)


def _distance(first: Moments, second: Moments, least: float) -> Tensor:
    """The distance; eigenvalues count from ``least`` of the largest, below which a root has no useful gradient."""
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    squares = torch.linalg.eigvalsh(root @ second.covariance @ root)
    cross = squares.clamp(min=least * float(squares.detach().max())).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return (first.mean - second.mean).square().sum() + traces - 2 * cross


def frechet_stderr(features: Tensor, reference: Moments, *, seed: int = 0, num_resamples: int = 20) -> float:
    """Bootstrap standard error of the distance of features (n, d) to fixed reference moments."""
    draws = generator(seed, "bootstrap")
    distances = [
        frechet_distance(moments(features[torch.randint(len(features), (len(features),), generator=draws)]), reference)
        for _ in range(num_resamples)
    ]
    return float(torch.tensor(distances, dtype=torch.float64).std())
