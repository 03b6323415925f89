"""The non-Markovian kernels: their marginals, their steps, their bound and their best variance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logsnr.core.errors import InputError
from logsnr.schedules.curve import Curve
from logsnr.schedules.families import Cosine, Flow
from logsnr.schedules.grids import uniform_log_snr
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.backward import kernel_std_of_rho
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.kernel import kernel_bound, kernel_kl, kernel_step, optimal_variance
from logsnr.solvers.weights import step_weights


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(first, step):
    return levels_of(Cosine(), [2 * first, 2 * (first + step)])


def test_the_coefficients_of_a_known_step():
    """From log(alpha / sigma) = 0.7 by 0.35 on the circle at rho = 0.8: what stays of x, and x0's share."""
    here, there = levels(0.7, 0.35)
    std, zero, one = kernel_std_of_rho(0.8, there.sigma, 0.35), torch.zeros(1).double(), torch.ones(1).double()
    kernel = (
        kernel_step(one, zero, here, there, std, zero).item(),
        kernel_step(zero, one, here, there, std, zero).item(),
    )
    found = step_weights(here, there, (here,), 0.8)
    assert kernel == pytest.approx((0.5935991, 0.4122213), abs=5e-8)
    assert (found.linear, *found.values) == pytest.approx(kernel, rel=1e-14)


@given(first=st.floats(-3, 3), step=st.floats(0.01, 4), rho=st.floats(0.05, 1.5))
def test_a_kernel_step_is_an_exponential_step(first, step, rho):
    here, there = levels(first, step)
    std = kernel_std_of_rho(rho, there.sigma, there.log_ratio - here.log_ratio)
    x, x0, noise = (normal(2, 3, seed=seed) for seed in range(3))
    expected, _ = Exponential(1, rho).advance(x, x0, here, there, noise, None)
    # where almost all noise is replaced, the rest of it is a difference of nearly equal numbers
    assert (kernel_step(x, x0, here, there, std, noise) - expected).abs().max() < 1e-7


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("first", [-2.0, 1.0])
def test_every_kernel_keeps_the_marginal(first, share):
    """Mean alpha x0 and variance sigma^2 of x stay so: by linearity the two coefficients tell."""
    here, there = levels(first, 0.7)
    std, zero, one = share * there.sigma, torch.zeros(1).double(), torch.ones(1).double()
    of_x = kernel_step(one, zero, here, there, std, zero).item()
    of_x0 = kernel_step(zero, one, here, there, std, zero).item()
    assert of_x * here.alpha + of_x0 == pytest.approx(there.alpha, rel=1e-14)
    assert (of_x * here.sigma) ** 2 + std**2 == pytest.approx(there.sigma**2, rel=1e-14)


def test_the_ends():
    noise, middle, data = (Flow().level(t) for t in (1, 0.4, 0))
    x, x0, draw = (normal(3, seed=seed) for seed in range(3))
    assert torch.equal(kernel_step(x, x0, middle, data, 0.0, None), x0)
    assert torch.allclose(kernel_step(x, x0, noise, middle, 0.0, None), 0.6 * x0 + 0.4 * x, rtol=0, atol=1e-15)
    forgotten = kernel_step(x, x0, noise, middle, middle.sigma, draw)
    assert torch.allclose(forgotten, 0.6 * x0 + 0.4 * draw, rtol=0, atol=1e-15)


def test_impossible_kernels_are_refused():
    here, there = levels(0, 0.5)
    for std in (-0.1, 1.01 * there.sigma, math.nan):
        with pytest.raises(InputError, match="kernel_std is"):
            kernel_step(normal(1), normal(1), here, there, std, normal(1))
    with pytest.raises(InputError, match="needs noise"):
        kernel_step(normal(1), normal(1), here, there, 0.1, None)


def test_the_share_of_a_step_is_a_divergence_of_gaussians():
    """Between two normal laws of variance k^2 whose means differ by c (x0 - estimate)."""
    here, there = levels(-0.5, 0.6)
    std, x, error = 0.6 * there.sigma, normal(1), 0.37
    means = [
        kernel_step(x, torch.tensor([x0], dtype=torch.float64), here, there, std, 0 * x) for x0 in (0.2, 0.2 + error)
    ]
    laws = [torch.distributions.Normal(mean, torch.tensor([std], dtype=torch.float64)) for mean in means]
    divergence = torch.distributions.kl_divergence(*laws).item()
    assert kernel_kl(here, there, std, error**2) == pytest.approx(divergence, rel=1e-12)
    assert kernel_kl(here, there, 0.0, error**2) == math.inf


MMSE = Curve(tuple(np.linspace(-6, 6, 61)), tuple(1 / (1 + np.exp(2 * np.linspace(-6, 6, 61)))))


@pytest.mark.parametrize("rho", [0.3, 0.5, 2.0])
def test_the_bound_is_tightest_at_rho_one(rho):
    """In the fine limit bound(rho) = (1 + rho^2)^2 / (4 rho^2) bound(1)."""
    grid = uniform_log_snr(Cosine(), 4000, start=0.99, end=0.01)[:-1]
    ratio = kernel_bound(grid, rho, MMSE) / kernel_bound(grid, 1.0, MMSE)
    assert ratio == pytest.approx((1 + rho**2) ** 2 / (4 * rho**2), rel=2e-3)


def test_the_bound_of_the_reverse_sde_is_the_integral_over_snr():
    """1/2 the integral of mmse d snr."""
    grid = uniform_log_snr(Cosine(), 4000, start=0.99, end=0.01)[:-1]
    snr = np.array([math.exp(level.log_snr) for level in grid])
    errors = MMSE(np.array([level.log_ratio for level in grid]))
    expected = float((np.diff(snr) * (errors[1:] + errors[:-1]) / 2).sum() / 2)
    assert kernel_bound(grid, 1.0, MMSE) == pytest.approx(expected, rel=5e-3)
    assert kernel_bound(grid, 0.0, MMSE) == math.inf


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("variance", [0.04, 1.0])
def test_the_best_variance_of_gaussian_data_is_exact(rho, variance):
    """For N(0, v) the reverse step is Gaussian, with the conditional variance of its joint law."""
    here, there = levels(-0.4, 0.9)
    std = kernel_std_of_rho(rho, there.sigma, there.log_ratio - here.log_ratio)
    noisy = here.alpha**2 * variance + here.sigma**2
    mmse = variance * here.sigma**2 / noisy
    kept = math.sqrt(there.sigma**2 - std**2) / here.sigma
    cleaner = there.alpha**2 * variance + there.sigma**2
    covariance = here.alpha * there.alpha * variance + kept * here.sigma**2
    conditional = cleaner - covariance**2 / noisy
    assert optimal_variance(here, there, std, mmse) == pytest.approx(conditional, rel=1e-12)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_order_one_with_mmse_has_the_best_variance(rho):
    here, there = levels(-0.4, 0.9)
    std = kernel_std_of_rho(rho, there.sigma, there.log_ratio - here.log_ratio)
    solver = Exponential(1, rho, mmse=MMSE)
    expected = optimal_variance(here, there, std, float(MMSE(here.log_ratio)))
    assert solver.noisy
    assert solver.weights(here, there, ((here, None),), 0).noise ** 2 == pytest.approx(expected, rel=1e-12)
    plain = Exponential(1, rho).weights(here, there, ((here, None),), 0)
    found = solver.weights(here, there, ((here, None),), 0)
    assert (found.linear, found.values) == (plain.linear, plain.values)
