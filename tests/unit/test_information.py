"""Information measures against mixtures and Gaussians whose answers are known by quadrature."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.data.mixture import GaussianMixture
from logsnr.information.config import InformationConfig
from logsnr.information.curve import MMSECurve
from logsnr.information.likelihood import nll_ode
from logsnr.information.profile import information_profile
from logsnr.information.reference import Gaussian, fit_gaussian
from logsnr.models.denoiser import Conditioning
from logsnr.schedules.families import VE, Cosine, Flow, LinearLogSNR, LinearVP, Trig

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64),
    torch.tensor([[0.04], [0.01], [0.09]], dtype=torch.float64),
)
ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(
    torch.full((8,), 1 / 8, dtype=torch.float64),
    0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.full((8, 2), 0.0025, dtype=torch.float64),
)
LINE = torch.linspace(-60, 60, 20001, dtype=torch.float64)
SCHEDULE = LinearLogSNR(25.0, -12.0)
RANGE = (-12.0, 20.0)


def density_entropy(log_snr: float) -> float:
    """Entropy of x + s noise by quadrature."""
    scale = math.sqrt(float(MIXTURE.std) ** 2 + math.exp(-log_snr))
    points = LINE * scale / 6
    logs = MIXTURE.log_prob(points[:, None], Level(0.5, 1.0, math.exp(-log_snr / 2)))
    return float(torch.trapezoid(-logs.exp() * logs, points))


def true_information(snr: float) -> float:
    return density_entropy(math.log(snr)) - 0.5 * math.log(2 * math.pi * math.e / snr)


def true_mmse(log_snr: float) -> float:
    """E|x|^2 - E|x0|^2, the second under the density of x + s noise."""
    level = Level(0.5, 1.0, math.exp(-log_snr / 2))
    points = LINE * math.sqrt(MIXTURE.std**2 + math.exp(-log_snr)) / 6
    x0 = MIXTURE(points[:, None], level).x0[:, 0]
    chance = MIXTURE.log_prob(points[:, None], level).exp()
    second = float((MIXTURE.weights[:, None] * (MIXTURE.means.square() + MIXTURE.variances)).sum())
    return second - float(torch.trapezoid(chance * x0.square(), points))


@pytest.fixture(scope="module")
def exact() -> MMSECurve:
    values = np.linspace(-16, 12, 561)
    return MMSECurve(tuple(values), tuple(true_mmse(value) for value in values), (0.0,) * len(values), 1)


@pytest.mark.parametrize("snr", [1, 10, 100, 1000])
def test_half_the_integral_of_the_error_is_the_information(exact, snr):
    assert exact.information(-16, math.log(snr)) == pytest.approx(true_information(snr), abs=1e-4)


@pytest.mark.parametrize(
    "schedule", [LinearVP(), Cosine(), Flow(), VE(1e-4, 100.0), Trig()], ids=lambda schedule: type(schedule).__name__
)
def test_the_bound_in_any_schedules_time_is_the_gain_of_information(exact, schedule):
    """Half the integral of error x snr g^2 / sigma^2 over time is I(snr at its end) - I(snr at its start)."""
    low, high = -6.0, 6.0
    first, last = schedule.t_of(torch.tensor([high, low], dtype=torch.float64)).tolist()
    times = torch.linspace(first, last, 8001, dtype=torch.float64)
    log_snr, rate = schedule.log_snr(times), (schedule.diffusion(times) / schedule.sigma(times)).square()
    error = torch.from_numpy(CubicSpline(exact.log_snr, exact.mmse)(log_snr.numpy()))
    bound = float(torch.trapezoid(0.5 * error * log_snr.exp() * rate, times))
    assert bound == pytest.approx(true_information(math.exp(high)) - true_information(math.exp(low)), abs=3e-5)


def test_the_slope_of_the_information_is_half_the_error():
    slope = (true_information(7.001) - true_information(6.999)) / 0.002
    assert slope == pytest.approx(true_mmse(math.log(7)) / 2, abs=1e-6)
    assert slope == pytest.approx(0.043890, abs=1e-5)


def test_fisher_information_is_the_slope_of_the_entropy(exact):
    """de Bruijn: dh / d(s^2) = J / 2."""
    variance = math.exp(-1.0)
    slope = (density_entropy(-math.log(variance * 1.001)) - density_entropy(-math.log(variance * 0.999))) / (
        0.002 * variance
    )
    assert exact.fisher(1.0) / 2 == pytest.approx(slope, rel=1e-4)


def test_the_mean_jacobian_is_the_error_over_the_variance(exact):
    log_snr = 2.0
    level = Level(0.5, 1.0, math.exp(-log_snr / 2))
    points = (LINE / 20)[:, None]
    x0 = MIXTURE(points, level).x0[:, 0]
    chance = MIXTURE.log_prob(points, level).exp()
    slope = torch.gradient(x0, spacing=(points[:, 0],))[0]
    assert float(exact.linear_part(log_snr / 2)) == pytest.approx(
        float(torch.trapezoid(chance * slope, points[:, 0])), abs=1e-4
    )


@pytest.fixture(scope="module")
def profile():
    points = torch.tensor([[-1.3], [-0.4], [0.3], [0.9], [1.5], [2.2]], dtype=torch.float64)
    data = points.repeat_interleave(4096, 0)
    draws = MIXTURE.sample(20000, seed=3)
    data = data[torch.randperm(len(data), generator=torch.Generator().manual_seed(0))]
    config = InformationConfig(calls=2000, batch_size=4096, curve_levels=40, curve_batches=5, levels=300, ode_steps=0)
    return data, information_profile(MIXTURE, data, SCHEDULE, fit_gaussian(draws), log_snr_range=RANGE, config=config)


def test_pointwise_likelihoods_are_those_of_the_density(profile):
    data, found = profile
    measured = data[: len(found.nll)]
    for point in measured.unique():
        mine = found.nll[measured[:, 0] == point]
        exact = -float(MIXTURE.log_prob(point.reshape(1, 1)))
        error = float(mine.std() / math.sqrt(len(mine)))
        assert float(mine.mean()) == pytest.approx(exact, abs=4 * error + 1e-4)
        assert error < 1e-2


def test_calls_are_counted(profile):
    _, found = profile
    assert found.network_calls == 40 * 5 + 300 * 6 == 2000
    assert found.sample_evaluations == 2000 * 4096


def test_the_entropy_is_found_with_its_error():
    data = MIXTURE.sample(64 * 1024, seed=1)
    config = InformationConfig(calls=1000, batch_size=1024 * 8, curve_levels=20, curve_batches=2, levels=100)
    found = information_profile(
        MIXTURE, data, SCHEDULE, fit_gaussian(MIXTURE.sample(20000, seed=3)), log_snr_range=RANGE, config=config
    )
    estimate = found.negative_log_likelihood
    assert estimate.value == pytest.approx(0.571416, abs=4 * estimate.stderr)
    assert estimate.stderr < 5e-3
    assert found.bits_per_dim.value == pytest.approx(estimate.value / math.log(2))
    assert found.discrete_bits_per_dim(2 / 255).value - found.bits_per_dim.value == pytest.approx(6.994, abs=1e-3)
    assert found.conditional is None
    assert found.mutual_information is None


@pytest.mark.parametrize("mixture", [MIXTURE, RING], ids=["one", "two"])
def test_the_ode_finds_the_density_at_every_point(mixture):
    """Within 1e-3 nats a dimension, at the settings that the docstring names."""
    data, gaussian = mixture.sample(512, seed=5), fit_gaussian(mixture.sample(20000, seed=3))
    truth, errors = -mixture.log_prob(data), {}
    for steps in (60, 160):
        found = nll_ode(mixture, data, SCHEDULE, gaussian, log_snr_range=(-14.0, 16.0), steps=steps, exact=True)
        errors[steps] = (found - truth).abs() / mixture.dimension
    assert float(errors[160].max()) < 1e-3
    assert float(errors[60].mean()) < 1e-3


def test_the_ode_knows_a_gaussian_in_any_schedule_and_shape():
    """Where one probe measures the trace exactly, as it is the same everywhere and has no cross terms."""
    known = gaussian([4.0, 0.25, 0.1, 1.0])
    exact = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 4).double(), known.variances[None])
    data = exact.sample(32, seed=2)

    def square(xt, level, cond=None):
        found = exact(xt.flatten(1), level)
        return type(found)(found.x0.reshape(xt.shape), found.eps.reshape(xt.shape))

    for schedule in (SCHEDULE, Flow(), VE(1e-4, 100.0)):
        for options in ({"exact": True}, {"seed": 3}):
            found = nll_ode(
                square, data.reshape(-1, 2, 2), schedule, known, log_snr_range=(-8.0, 16.0), steps=80, **options
            )
            assert float((found + exact.log_prob(data)).abs().max()) < 1e-4


def test_one_probe_is_right_in_the_mean():
    data, known = RING.sample(2000, seed=5), fit_gaussian(RING.sample(20000, seed=3))
    found = nll_ode(RING, data, SCHEDULE, known, log_snr_range=(-14.0, 16.0), steps=60)
    wrong = (found + RING.log_prob(data)) / 2
    assert abs(float(wrong.mean())) < 4 * float(wrong.std()) / math.sqrt(len(wrong))
    assert float(wrong.std()) > 0.1


class Labelled:
    """The exact denoiser of one component when told its label, of the whole mixture otherwise."""

    def __init__(self):
        self.parts = [
            GaussianMixture(torch.ones(1).double(), MIXTURE.means[k : k + 1], MIXTURE.variances[k : k + 1])
            for k in range(3)
        ]

    def __call__(self, xt, level, cond=None):
        labels = cond.values["label"]
        if int(labels[0]) < 0:
            return MIXTURE(xt, level)
        x0, eps = torch.empty_like(xt), torch.empty_like(xt)
        for k, part in enumerate(self.parts):
            rows = labels == k
            found = part(xt[rows], level)
            x0[rows], eps[rows] = found.x0, found.eps
        return type(found)(x0, eps)


def test_the_information_about_the_label_is_found():
    """Components that hardly overlap: nearly the entropy of the label, exactly h(x) - h(x | label)."""
    draws = torch.Generator().manual_seed(5)
    labels = torch.multinomial(MIXTURE.weights, 32768, replacement=True, generator=draws)
    noise = torch.randn(len(labels), 1, generator=draws, dtype=torch.float64)
    data = MIXTURE.means[labels] + MIXTURE.variances[labels].sqrt() * noise
    cond = Conditioning({"label": labels}, {"label": torch.full_like(labels, -1)})
    config = InformationConfig(calls=1000, batch_size=8192, curve_levels=25, curve_batches=2, levels=100)
    found = information_profile(
        Labelled(), data, SCHEDULE, fit_gaussian(data), cond=cond, log_snr_range=RANGE, config=config
    )
    given = float((MIXTURE.weights * 0.5 * (2 * math.pi * math.e * MIXTURE.variances[:, 0]).log()).sum())
    truth = density_entropy(40.0) - given
    estimate = found.mutual_information
    assert estimate.value == pytest.approx(truth, abs=4 * estimate.stderr + 1e-4)
    assert estimate.stderr < 0.01
    assert found.network_calls <= 1000
    assert all(a <= b + 1e-9 for a, b in zip(found.conditional.mmse, found.curve.mmse, strict=True))


def gaussian(variances):
    size = len(variances)
    return Gaussian(torch.zeros(size).double(), torch.eye(size).double(), torch.tensor(variances, dtype=torch.float64))


def test_a_gaussian_reference_of_gaussian_data_leaves_nothing_to_measure():
    known = gaussian([4.0, 0.25, 1e-3])
    exact = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 3).double(), known.variances[None])
    data = exact.sample(256, seed=2)
    config = InformationConfig(calls=200, batch_size=64, curve_levels=10, curve_batches=2, levels=40)
    found = information_profile(exact, data, Flow(), known, log_snr_range=(-10.0, 10.0), config=config)
    assert (found.nll + exact.log_prob(data[: len(found.nll)])).abs().max() < 1e-8
    assert found.noise_information == pytest.approx(known.information(10.0) - known.information(-10.0), rel=1e-3)


def test_the_profile_holds_the_likelihood_by_the_ode_within_its_calls():
    known = gaussian([4.0, 0.25, 1e-3])
    exact = GaussianMixture(torch.ones(1).double(), torch.zeros(1, 3).double(), known.variances[None])
    data = exact.sample(128, seed=2)
    config = InformationConfig(calls=300, batch_size=64, curve_levels=10, curve_batches=2, levels=40, ode_steps=40)
    found = information_profile(exact, data, Flow(), known, log_snr_range=(-10.0, 10.0), config=config)
    smoothed = replace(exact, variances=exact.variances + math.exp(-10))  # samples at the clean end hold its noise
    assert (found.nll_ode + smoothed.log_prob(data[:64])).abs().max() < 1e-3
    assert found.negative_log_likelihood_ode.value == pytest.approx(float(found.nll_ode.mean()))
    assert found.network_calls == 20 + 4 * 40 + 2 * 40 <= 300
    without = replace(config, ode_steps=0)
    found = information_profile(exact, data, Flow(), known, log_snr_range=(-10.0, 10.0), config=without)
    assert found.nll_ode is found.negative_log_likelihood_ode is None
    with pytest.raises(InputError, match="ode_steps is -1"):
        replace(config, ode_steps=-1)


def test_the_tail_of_the_reference_is_what_lies_outside():
    known = gaussian([4.0, 0.3])
    whole = known.entropy() - 0.5 * 2 * math.log(2 * math.pi * math.e)
    assert known.tail(-60.0, 60.0) == pytest.approx(0, abs=1e-9)
    low, high = known.tail(-60.0, 1.0), known.tail(1.0, 60.0)
    assert low + high == pytest.approx(whole, abs=1e-9)
    assert known.information(2.0) == pytest.approx(0.5 * sum(math.log1p(math.exp(2) * v) for v in (4.0, 0.3)))


def test_a_gaussian_is_fitted_along_its_axes():
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    data = torch.randn(20000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = data * torch.tensor([3.0, 1.0, 0.2]) @ turn.T + 5
    found = fit_gaussian(data)
    assert found.variances.tolist() == pytest.approx([0.04, 1.0, 9.0], rel=0.05)
    assert found.nll(found.turned(data)).mean() == pytest.approx(found.entropy(), abs=1e-3)


@pytest.mark.parametrize("count", [0, 1])
def test_too_little_data_is_refused(count):
    with pytest.raises(InputError, match="at least 2"):
        fit_gaussian(torch.zeros(count, 3))


def test_too_few_calls_are_refused():
    with pytest.raises(InputError, match="too few"):
        information_profile(
            MIXTURE,
            MIXTURE.sample(64),
            SCHEDULE,
            gaussian([1.0]),
            log_snr_range=RANGE,
            config=InformationConfig(calls=9),
        )
