"""Intervals against formulas and tables, and what they refuse."""

import math

import pytest
import torch
from scipy import stats

from logsnr.core.errors import InputError
from logsnr.metrics.bounds import bootstrap_interval, clopper_pearson_upper, paired_bootstrap_ratio, t_interval, wilson


def normal(num, seed=0):
    return torch.randn(num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (8, 10), (10, 10), (500, 1000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_the_formula(successes, n, confidence):
    z, p = stats.norm.ppf((1 + confidence) / 2), successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = [(centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)]
    assert wilson(successes, n, confidence) == pytest.approx(expected, abs=1e-12)


def test_wilson_of_a_table():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 20), (19, 20), (7, 500)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_exact_upper_bound_leaves_the_tail(successes, n, confidence):
    bound = clopper_pearson_upper(successes, n, confidence)
    assert stats.binom.cdf(successes, n, bound) == pytest.approx(1 - confidence, abs=1e-9)


def test_the_exact_upper_bound_at_the_ends():
    assert clopper_pearson_upper(0, 10) == pytest.approx(1 - 0.05**0.1, abs=1e-9)
    assert clopper_pearson_upper(0, 300) == pytest.approx(3 / 300, abs=2e-4)
    assert clopper_pearson_upper(10, 10) == 1


@pytest.mark.parametrize("bound", [wilson, clopper_pearson_upper])
@pytest.mark.parametrize(
    ("successes", "n", "confidence"),
    [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 0.0), (1, 5, 1.0), (1, 5, 95.0)],
)
def test_shares_that_are_none_are_refused(bound, successes, n, confidence):
    with pytest.raises(InputError):
        bound(successes, n, confidence)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_a_bootstrap_of_normal_values_is_the_normal_interval(confidence):
    values = 3 * normal(2000) + 5
    half = stats.norm.ppf((1 + confidence) / 2) * float(values.std()) / 2000**0.5
    low, high = bootstrap_interval(values, seed=1, num_resamples=4000, confidence=confidence)
    assert (low + high) / 2 == pytest.approx(float(values.mean()), abs=half / 5)
    assert high - low == pytest.approx(2 * half, rel=0.08)


def test_a_bootstrap_covers_the_mean_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(normal(60, seed=seed), seed=seed, num_resamples=300, confidence=0.8)
        hits += low <= 0 <= high
    assert 0.72 <= hits / 200 <= 0.88


def test_a_bootstrap_is_reproducible_and_depends_on_its_seed():
    values = normal(50).float()
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_equal_values_have_no_spread():
    assert bootstrap_interval(torch.full((20,), 2.0)) == (2, 2)


def test_a_ratio_is_resampled_in_pairs():
    costs = normal(40).abs() + 0.1
    assert paired_bootstrap_ratio(3 * costs, costs) == pytest.approx((3, 3))
    low, high = paired_bootstrap_ratio(3 * costs.flip(0), costs)
    assert low < 2.8
    assert high > 3.2


def test_a_ratio_of_means_is_not_a_mean_of_ratios():
    a, b = torch.tensor([1.0, 10.0] * 50), torch.tensor([10.0, 1.0] * 50)
    low, high = paired_bootstrap_ratio(a, b, seed=2)
    assert low < 1 < high
    assert high < 2


def test_a_ratio_follows_the_delta_method():
    a, b = normal(3000, 1) + 6, 0.5 * normal(3000, 2) + 3
    relative = math.hypot(float(a.std() / a.mean()), float(b.std() / b.mean())) / 3000**0.5
    low, high = paired_bootstrap_ratio(a, b, num_resamples=3000)
    ratio = float(a.mean() / b.mean())
    assert (low, high) == pytest.approx((ratio * (1 - 1.96 * relative), ratio * (1 + 1.96 * relative)), rel=2e-3)


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0], [3.0, 4.0]], [1.0, float("nan")], [1.0, float("inf")]])
def test_columns_that_are_none_are_refused(values):
    with pytest.raises(InputError, match="at least 2 finite values"):
        bootstrap_interval(torch.tensor(values))


@pytest.mark.parametrize("options", [{"num_resamples": 0}, {"confidence": 0.0}, {"confidence": 1.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(InputError):
        bootstrap_interval(torch.arange(5.0), **options)


def test_values_that_are_no_pairs_are_refused():
    with pytest.raises(InputError, match="no pairs"):
        paired_bootstrap_ratio(torch.ones(3), torch.ones(4))


@pytest.mark.parametrize("denominator", [torch.zeros(20), torch.tensor([1.0, -1.0] * 10)])
def test_a_ratio_to_nothing_is_refused(denominator):
    with pytest.raises(InputError, match="may be 0"):
        paired_bootstrap_ratio(torch.ones(20), denominator)


def test_students_interval_is_the_textbooks() -> None:
    values = torch.tensor([0.02, 0.05, 0.01, 0.04, 0.03])
    low, high = t_interval(values)
    half = 2.776 * float(values.std()) / 5**0.5
    assert (low + high) / 2 == pytest.approx(0.03)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    with pytest.raises(InputError, match="at least 2"):
        t_interval(values[:1])
