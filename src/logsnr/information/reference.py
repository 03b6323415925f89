"""The Gaussian with the data's mean and covariance: its density, its denoiser's error, its share of every integral.

Every measure is the Gaussian's own, known exactly, plus an integral of the difference to the network's errors on the
same noise. The difference is small and tame where the errors themselves are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,), eigenvectors (d, d) in columns and eigenvalues (d,) of a covariance, float64."""

    mean: Tensor
    axes: Tensor
    variances: Tensor

    @property
    def dimension(self) -> int:
        """The number of dimensions."""
        return len(self.mean)

    def turned(self, x: Tensor) -> Tensor:
        """Deviations from the mean along the axes, (n, d), of samples (n, ...)."""
        return (x.flatten(1).double() - self.mean) @ self.axes

    def turned_noise(self, noise: Tensor) -> Tensor:
        """Noise (n, ...) along the axes, (n, d)."""
        return noise.flatten(1).double() @ self.axes

    def nll(self, turned: Tensor) -> Tensor:
        """-log density in nats, (n,), of ``turned`` samples."""
        return 0.5 * (turned.square() / self.variances + (2 * math.pi * self.variances).log()).sum(1)

    def error(self, turned: Tensor, noise: Tensor, log_snr: float) -> Tensor:
        """Squared error (n,) of the Gaussian's denoiser on x + s noise, both ``turned``, summed over dimensions."""
        variance = math.exp(-log_snr)
        wrong = (variance * turned - math.sqrt(variance) * self.variances * noise) / (self.variances + variance)
        return wrong.square().sum(1)

    def mmse(self, log_snr: Tensor) -> Tensor:
        """Mean squared error at values of log-SNR, summed over dimensions: sum of v / (1 + snr v)."""
        return (self.variances / (1 + log_snr.double().exp()[..., None] * self.variances)).sum(-1)

    def information(self, log_snr: float) -> float:
        """Mutual information of the Gaussian and its noisy self in nats: half the sum of log(1 + snr v)."""
        return 0.5 * float((math.exp(log_snr) * self.variances).log1p().sum())

    def entropy(self) -> float:
        """Differential entropy in nats."""
        return 0.5 * float((2 * math.pi * math.e * self.variances).log().sum())

    def tail(self, low: float, high: float) -> float:
        """What of the entropy, relative to a unit Gaussian's, comes from log-SNR outside (low, high), in nats."""
        inside = sum(
            sign * (self.information(end) - 0.5 * self.dimension * math.log1p(math.exp(end)))
            for sign, end in ((1, high), (-1, low))
        )
        return 0.5 * float(self.variances.log().sum()) - inside


def fit_gaussian(data: Tensor, *, floor: float = 1e-6) -> Gaussian:
    """The Gaussian of samples (n, ...); eigenvalues below ``floor`` of the largest are raised to it.

    Raises:
        InputError: fewer than two samples.
    """
    if len(data) < 2:
        raise InputError(f"a covariance needs at least 2 samples, not {len(data)}: give more data")
    flat = data.flatten(1).double()
    variances, axes = torch.linalg.eigh(torch.atleast_2d(flat.T.cov()))
    return Gaussian(flat.mean(0), axes, variances.clamp_min(floor * float(variances.max())))
