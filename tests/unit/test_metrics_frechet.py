"""The Frechet distance against closed forms, against scipy's matrix square root, and its error estimate."""

import numpy as np
import pytest
import torch
from scipy import linalg

from logsnr.core.errors import InputError
from logsnr.metrics.frechet import Moments, StreamingMoments, frechet_distance, frechet_stderr, frechet_to, moments


def gaussian(mean, covariance):
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    return Moments(torch.as_tensor(mean, dtype=torch.float64), covariance, 1000)


def random_moments(size, rank, seed):
    draws = np.random.default_rng(seed)
    factor = draws.normal(size=(size, rank))
    return gaussian(draws.normal(size=size), factor @ factor.T / rank)


@pytest.mark.parametrize("rank", [3, 12, 40])
def test_a_distribution_is_at_distance_zero_from_itself(rank):
    first = random_moments(12, rank, 0)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6 * float(first.covariance.trace()))


@pytest.mark.parametrize("covariance", [torch.eye(3), torch.diag(torch.tensor([4.0, 1.0, 0.0])), torch.zeros(3, 3)])
def test_a_shifted_mean_counts_squared(covariance):
    first, second = gaussian([0, 0, 0], covariance), gaussian([1, -2, 2], covariance)
    assert frechet_distance(first, second) == pytest.approx(9, abs=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.25, 4.0, 100.0])
def test_a_scaled_covariance_has_a_closed_form(scale):
    first = random_moments(8, 30, 1)
    second = Moments(first.mean, first.covariance * scale, 1000)
    expected = float(first.covariance.trace()) * (1 - scale**0.5) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_covariances_that_share_no_direction_add_up():
    first, second = gaussian([0, 0], [[9, 0], [0, 0]]), gaussian([0, 0], [[0, 0], [0, 4]])
    assert frechet_distance(first, second) == pytest.approx(13, abs=1e-12)


@pytest.mark.parametrize("size", [2, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_the_trace_term_agrees_with_scipys_square_root(size, seed):
    first, second = random_moments(size, 2 * size, seed), random_moments(size, 3 * size, seed + 100)
    root = linalg.sqrtm(first.covariance.numpy() @ second.covariance.numpy()).real
    shift = (first.mean - second.mean).square().sum()
    expected = float(shift + first.covariance.trace() + second.covariance.trace()) - 2 * np.trace(root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-8)


def test_a_singular_covariance_is_the_limit_of_regular_ones():
    first, second = random_moments(10, 4, 2), random_moments(10, 30, 3)
    limit = [
        frechet_distance(Moments(first.mean, first.covariance + e * torch.eye(10, dtype=torch.float64), 9), second)
        for e in (1e-8, 1e-12)
    ]
    assert frechet_distance(first, second) == pytest.approx(limit[1], rel=1e-5)
    assert abs(limit[1] - frechet_distance(first, second)) < abs(limit[0] - frechet_distance(first, second))


def test_moments_are_numpys_mean_and_covariance():
    features = np.random.default_rng(0).normal(size=(200, 5)) @ np.diag([1, 2, 3, 4, 5]) + 7
    found = moments(torch.from_numpy(features))
    assert np.allclose(found.mean, features.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(features.T), rtol=1e-10)
    assert found.num == 200


@pytest.mark.parametrize("sizes", [[1] * 40, [3, 36, 1], [39, 1]])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_streaming_equals_all_at_once(sizes, offset):
    features = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + offset
    stream = StreamingMoments()
    for part in features.split(sizes):
        stream.update(part)
    found, expected = stream.moments(), moments(features)
    assert torch.allclose(found.mean, expected.mean, rtol=1e-12)
    assert torch.allclose(found.covariance, expected.covariance, rtol=1e-9, atol=1e-9)
    assert torch.allclose(expected.covariance, features.double().T.cov(), rtol=1e-9, atol=1e-9)
    assert found.num == 40


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_samples_are_refused(num):
    with pytest.raises(InputError, match=f"at least 2 images, not {num}"):
        moments(torch.zeros(num, 3))


def shifted(num, seed=0):
    return torch.randn(num, 4, generator=torch.Generator().manual_seed(seed)) + 1


STANDARD = gaussian([0] * 4, torch.eye(4))


def test_the_standard_error_is_the_deltas():
    """For a shift s the distance is |s|^2 to first order, so its error is 2 |s| / sqrt(n)."""
    found = frechet_stderr(shifted(2000), STANDARD, num_resamples=200)
    assert found == pytest.approx(2 * 2 / 2000**0.5, rel=0.2)


def test_the_standard_error_shrinks_with_the_root_of_the_samples():
    few, many = (frechet_stderr(shifted(num), STANDARD, num_resamples=200) for num in (400, 6400))
    assert few / many == pytest.approx(4, rel=0.25)


def test_the_standard_error_is_reproducible():
    features = shifted(100)
    assert frechet_stderr(features, STANDARD, seed=3) == frechet_stderr(features, STANDARD, seed=3)
    assert frechet_stderr(features, STANDARD, seed=3) != frechet_stderr(features, STANDARD, seed=4)


def test_the_distance_of_features_has_the_gradient_of_finite_differences():
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = random_moments(5, 30, 3)
    shift = torch.tensor([0.3, -0.2, 0.1, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    value = frechet_to(features * (1 + shift) + shift, target)
    value.backward()
    assert float(value.detach()) == pytest.approx(
        frechet_distance(moments((features * (1 + shift) + shift).detach()), target), rel=1e-9
    )
    assert torch.autograd.gradcheck(lambda at: frechet_to(features * (1 + at) + at, target), (shift,))


def test_a_feature_that_never_varies_leaves_the_gradient_finite():
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[:, 1] = 0
    scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
    frechet_to(features * scale, gaussian([0.0] * 4, torch.diag(torch.tensor([1.0, 0.0, 2.0, 1.0])))).backward()
    assert bool(scale.grad.isfinite().all())
