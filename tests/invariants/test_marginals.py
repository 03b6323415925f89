"""Every noise multiplier keeps the law of the samples: Kolmogorov-Smirnov distances to a known distribution.

Two integrators with the wrong factor of the score, of which one was printed in a review, show that the test sees it.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from logsnr.core.types import Level
from logsnr.data.mixture import GaussianMixture
from logsnr.solvers.exponential import Exponential

WEIGHTS, MEANS, VARIANCES = (0.3, 0.5, 0.2), (-1.2, 0.3, 1.5), (0.04, 0.01, 0.09)
MIXTURE = GaussianMixture(
    torch.tensor(WEIGHTS, dtype=torch.float64),
    torch.tensor(MEANS, dtype=torch.float64)[:, None],
    torch.tensor(VARIANCES, dtype=torch.float64)[:, None],
)
COUNT, STEPS = 20_000, 200
CRITICAL = 1.628 / COUNT**0.5  # 1 %


def level(log_ratio):
    return Level(0.5, 1 / math.sqrt(1 + math.exp(-2 * log_ratio)), 1 / math.sqrt(1 + math.exp(2 * log_ratio)))


GRID = [level(-3.5 + 8 * i / STEPS) for i in range(STEPS + 1)]


def normal(draws):
    return torch.randn(COUNT, 1, generator=draws, dtype=torch.float64)


def start(here, draws):
    """Exact samples of the noisy law."""
    return here.alpha * MIXTURE.sample(COUNT, seed=0) + here.sigma * normal(draws)


def distance(x, here):
    """The largest gap between the distribution of x and that of the mixture at a level."""

    def cumulative(values):
        laws = (
            stats.norm(here.alpha * mean, math.hypot(here.alpha * variance**0.5, here.sigma))
            for mean, variance in zip(MEANS, VARIANCES, strict=True)
        )
        return sum(weight * law.cdf(values) for weight, law in zip(WEIGHTS, laws, strict=True))

    return stats.kstest(x[:, 0].numpy(), cumulative).statistic


def bump(log_ratio):
    return 1.5 * np.exp(-(np.asarray(log_ratio) ** 2))


@pytest.mark.parametrize(
    "rho", [0.0, 0.5, 1.0, 1.5, 2.0, bump, "bump"], ids=["0", "0.5", "1", "1.5", "2", "function", "preset"]
)
def test_samples_have_the_law_of_the_data(rho):
    draws = torch.Generator().manual_seed(0)
    solver, x, memory = Exponential(2, rho), start(GRID[0], draws), None
    for here, there in pairwise(GRID):
        x, memory = solver(MIXTURE, x, here, there, normal(draws) if solver.noisy else None, memory)
    assert distance(x, GRID[-1]) < CRITICAL


def test_the_test_itself_is_fair():
    exact = start(GRID[-1], torch.Generator().manual_seed(0))
    assert distance(exact, GRID[-1]) < CRITICAL < distance(exact + 0.05, GRID[-1])


def with_factor(rate):
    """dy = rate (x0 - y) dl + sqrt(2) rho e^{-l} dW at rho = 2, by steps that are exact for constant x0."""
    draws = torch.Generator().manual_seed(0)
    x = start(GRID[0], draws)
    for here, there in pairwise(GRID):
        h = there.log_ratio - here.log_ratio
        kept = math.exp(-rate * h)
        variance = 2 * 2**2 * math.exp(-2 * there.log_ratio) * math.expm1(2 * (1 - rate) * h) / (2 * (1 - rate))
        y = kept * x / here.alpha + (1 - kept) * MIXTURE(x, here).x0 + math.sqrt(variance) * normal(draws)
        x = there.alpha * y
    return distance(x, GRID[-1])


def test_wrong_factors_of_the_score_are_seen():
    """The factor is (1 + rho^2) / 2 of g^2, that is 1 + rho^2 = 5 in log-SNR."""
    assert with_factor(1 + 2**2) < 0.03  # right, and of first order
    assert with_factor(1 + 1**2) > 0.1  # that of rho = 1
    assert with_factor(2 / (1 + 2**2)) > 0.1  # 1 / (1 + rho^2) of g^2
