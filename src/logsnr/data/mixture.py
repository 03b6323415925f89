"""Gaussian mixtures with everything known: samples, density, and the exact denoiser at any level, in float64.

They are what solvers and information measures are tested against, and small enough to look at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.core.types import Level, Prediction


@dataclass(frozen=True)
class GaussianMixture:
    """Weights (k,), means (k, d), and variances (k, d) along the columns of ``axes`` (k, d, d) or the coordinates."""

    weights: Tensor
    means: Tensor
    variances: Tensor
    axes: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool((self.variances > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise InputError("a mixture needs positive variances and weights that sum to 1")

    @property
    def dimension(self) -> int:
        """The number of dimensions."""
        return self.means.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean (d,)."""
        return self.weights @ self.means

    @property
    def std(self) -> float:
        """Root of the mean variance over the dimensions."""
        spread = (self.means - self.mean).square() + self.variances.mean(1, keepdim=True)
        return math.sqrt(float((self.weights[:, None] * spread).sum()) / self.dimension)

    def sample(self, count: int, *, seed: int = 0) -> Tensor:
        """Draws (count, d)."""
        draws = generator(seed, "mixture")
        which = torch.multinomial(self.weights, count, replacement=True, generator=draws)
        noise = torch.randn(count, self.dimension, generator=draws, dtype=torch.float64) * self.variances[which].sqrt()
        turned = noise if self.axes is None else torch.einsum("nij,nj->ni", self.axes[which], noise)
        return self.means[which] + turned

    def log_prob(self, x: Tensor, level: Level | None = None) -> Tensor:
        """log p of rows (n, d): of the data, or of noisy samples at a level; (n,) in nats."""
        return self._parts(x, level or Level(0.0, 1.0, 0.0))[0].logsumexp(1)

    def __call__(self, xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        """The posterior mean of the clean data, and the noise that it implies; xt is (n, d)."""
        logs, turned, total = self._parts(xt.double(), level)
        shares = logs.softmax(1)
        pull = level.alpha * self.variances / total * turned
        pulled = pull if self.axes is None else torch.einsum("kij,nkj->nki", self.axes, pull)
        x0 = torch.einsum("nk,nki->ni", shares, self.means + pulled)
        if level.sigma == 0:
            return Prediction(xt / level.alpha, torch.zeros_like(xt))
        away = torch.einsum("nk,nki->ni", shares, self._turn_back(turned / total))
        return Prediction(x0.to(xt.dtype), (level.sigma * away).to(xt.dtype))

    def _turn_back(self, values: Tensor) -> Tensor:
        return values if self.axes is None else torch.einsum("kij,nkj->nki", self.axes, values)

    def _parts(self, xt: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Joint log-densities (n, k), distances from the means along the axes (n, k, d), and variances (k, d)."""
        away = xt.double()[:, None] - level.alpha * self.means
        turned = away if self.axes is None else torch.einsum("kij,nki->nkj", self.axes, away)
        total = level.alpha**2 * self.variances + level.sigma**2
        exponent = -0.5 * (turned.square() / total + (2 * math.pi * total).log()).sum(2)
        return self.weights.log() + exponent, turned, total
