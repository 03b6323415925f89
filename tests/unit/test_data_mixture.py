"""Gaussian mixtures: densities against scipy, the denoiser against the score, samples against their moments."""

import math

import pytest
import torch
from scipy import stats

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.data.mixture import GaussianMixture

LEVELS = [Level(0.5, 0.6, 0.8), Level(0.2, 1.0, 0.3), Level(0.9, 0.05, 3.0)]
DATA = Level(0.0, 1.0, 0.0)


def rotations(count, dimension):
    """From three dimensions on none of them is symmetric."""
    draws = torch.randn(count, dimension, dimension, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return torch.linalg.qr(draws)[0]


def mixture(*, turned):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    draws = torch.Generator().manual_seed(1)
    means = torch.randn(3, 3, generator=draws, dtype=torch.float64)
    variances = 0.1 + torch.rand(3, 3, generator=draws, dtype=torch.float64)
    return GaussianMixture(weights, means, variances, rotations(3, 3) if turned else None)


PLAIN, TURNED = mixture(turned=False), mixture(turned=True)
X = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

mixtures = pytest.mark.parametrize("data", [PLAIN, TURNED], ids=["plain", "turned"])


def covariances(data):
    axes = torch.eye(3).double().expand(3, 3, 3) if data.axes is None else data.axes
    return axes @ torch.diag_embed(data.variances) @ axes.transpose(1, 2)


@mixtures
@pytest.mark.parametrize("level", [None, *LEVELS])
def test_the_density_is_scipys(data, level):
    at = level or DATA
    total = 0
    for weight, mean, covariance in zip(data.weights, data.means, covariances(data), strict=True):
        law = stats.multivariate_normal(at.alpha * mean, at.alpha**2 * covariance + at.sigma**2 * torch.eye(3).double())
        total = total + float(weight) * law.pdf(X)
    found = data.log_prob(X, level) if level else data.log_prob(X)
    assert found.exp().tolist() == pytest.approx(total.tolist(), rel=1e-10)


@mixtures
@pytest.mark.parametrize("level", LEVELS)
def test_the_denoiser_follows_the_score(data, level):
    """Tweedie: alpha x0 = x + sigma^2 grad log p, and eps = -sigma grad log p."""
    x = X.clone().requires_grad_()
    score = torch.autograd.grad(data.log_prob(x, level).sum(), x)[0]
    found = data(X, level)
    assert torch.allclose(level.alpha * found.x0, X + level.sigma**2 * score, rtol=0, atol=1e-12)
    assert torch.allclose(found.eps, -level.sigma * score, rtol=0, atol=1e-12)
    assert torch.allclose(level.alpha * found.x0 + level.sigma * found.eps, X, rtol=0, atol=1e-12)


@mixtures
def test_the_ends_of_the_denoiser(data):
    clean, lost = data(X, DATA), data(X, Level(1.0, 0.0, 1.0))
    assert torch.equal(clean.x0, X)
    assert torch.equal(clean.eps, torch.zeros_like(X))
    assert torch.allclose(lost.x0, data.mean.expand_as(X), rtol=0, atol=1e-14)
    assert torch.allclose(lost.eps, X, rtol=0, atol=1e-14)


def test_a_turned_mixture_is_the_plain_one_in_other_coordinates():
    turn = rotations(1, 3)[0]
    turned = GaussianMixture(PLAIN.weights, PLAIN.means @ turn.T, PLAIN.variances, turn.expand(3, 3, 3))
    assert torch.allclose(turned.log_prob(X @ turn.T), PLAIN.log_prob(X), rtol=0, atol=1e-12)
    for level in LEVELS:
        found, expected = turned(X @ turn.T, level), PLAIN(X, level)
        assert torch.allclose(found.x0, expected.x0 @ turn.T, rtol=0, atol=1e-12)
        assert torch.allclose(found.eps, expected.eps @ turn.T, rtol=0, atol=1e-12)


@mixtures
def test_samples_have_the_moments_of_the_mixture(data):
    draws = data.sample(40_000, seed=4)
    spread = (data.means - data.mean)[:, :, None] * (data.means - data.mean)[:, None]
    covariance = torch.einsum("k,kij->ij", data.weights, covariances(data) + spread)
    assert draws.shape == (40_000, data.dimension)
    assert torch.allclose(draws.mean(0), data.mean, rtol=0, atol=0.02)
    assert torch.allclose(draws.T.cov(), covariance, rtol=0, atol=0.03)
    assert data.std == pytest.approx(math.sqrt(covariance.trace().item() / 3), rel=1e-12)


def test_samples_depend_on_the_seed_alone():
    assert torch.equal(PLAIN.sample(5, seed=1), PLAIN.sample(5, seed=1))
    assert not torch.equal(PLAIN.sample(5, seed=1), PLAIN.sample(5, seed=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("level", [*LEVELS, DATA])
def test_predictions_keep_the_type_of_the_sample(dtype, level):
    found, expected = TURNED(X.to(dtype), level), TURNED(X.to(dtype).double(), level)
    assert found.x0.dtype == found.eps.dtype == dtype
    assert torch.equal(found.x0, expected.x0.to(dtype))


@pytest.mark.parametrize(("weights", "variance"), [([0.5, 0.4], 1.0), ([0.5, 0.5], 0.0)])
def test_impossible_mixtures_are_refused(weights, variance):
    with pytest.raises(InputError, match="positive variances and weights that sum to 1"):
        GaussianMixture(torch.tensor(weights), torch.zeros(2, 1), torch.full((2, 1), variance))
