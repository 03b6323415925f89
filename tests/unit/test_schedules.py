"""The members of the signal-to-noise family: ends, inverses, rates and defining formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from members import CLEAN, ENDLESS, MEMBERS, VP, wide
from scipy import integrate, stats

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.families import EDM, VE, Flow, InVE, LinearLogSNR, LinearVP, Preconditioned, Shifted, SubVP, Trig
from logsnr.schedules.learned import LearnedLogSNR
from logsnr.schedules.schedule import levels_at, levels_of

TIMES = torch.cat(
    [torch.logspace(-12, -3, 200, dtype=torch.float64), torch.linspace(0.0011, 1, 5000, dtype=torch.float64)]
)
INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
UNIT = st.floats(0, 1)

members = pytest.mark.parametrize("schedule", MEMBERS.values(), ids=MEMBERS.keys())


def point(value):
    return torch.tensor(value, dtype=torch.float64)


@members
def test_log_snr_falls_strictly(schedule):
    values = schedule.log_snr(TIMES)
    assert bool((values.diff() < 0).all())
    assert values.dtype == torch.float64


@members
def test_log_snr_is_that_of_alpha_and_sigma(schedule):
    alpha, sigma, log_snr = schedule.alpha(TIMES), schedule.sigma(TIMES), schedule.log_snr(TIMES)
    # Cauchy's tails leave the range of float64
    inside = (alpha > 0) & (sigma > 0) & sigma.isfinite()
    assert inside.sum() > 4900
    gap = 2 * (alpha.log() - sigma.log()) - log_snr
    assert gap[inside].abs().max() < 1e-10
    assert torch.equal(schedule.log_ratio(TIMES), log_snr / 2)
    level = schedule.level(0.3)
    assert level.log_snr == pytest.approx(schedule.log_snr(point(0.3)).item(), abs=1e-12)
    assert level.log_ratio == level.log_snr / 2


@members
def test_time_is_found_from_log_snr(schedule):
    assert (schedule.t_of(schedule.log_snr(TIMES)) - TIMES).abs().max() < 1e-10


@members
@settings(max_examples=15)
@given(t=UNIT)
def test_time_is_found_from_log_snr_anywhere(schedule, t):
    assert schedule.t_of(schedule.log_snr(point(t))).item() == pytest.approx(t, abs=1e-10)


@members
@settings(max_examples=15)
@given(share=UNIT)
def test_log_snr_is_found_from_time(schedule, share):
    low, high = (schedule.log_snr(point(t)).item() for t in (0.999, 1e-3))
    value = point(low + share * (high - low))
    assert schedule.log_snr(schedule.t_of(value)).item() == pytest.approx(value.item(), abs=1e-9, rel=1e-11)


@members
def test_coefficients_follow_from_log_snr_alone(schedule):
    alpha, sigma = schedule.coefficients(schedule.log_snr(INSIDE))
    assert torch.allclose(alpha, schedule.alpha(INSIDE), rtol=1e-12, atol=0)
    assert torch.allclose(sigma, schedule.sigma(INSIDE), rtol=1e-12, atol=0)
    log_snr = schedule.log_snr(INSIDE).tolist()
    for level, t, a, s in zip(levels_of(schedule, log_snr), INSIDE.tolist(), alpha, sigma, strict=True):
        assert (level.t, level.alpha, level.sigma) == pytest.approx((t, a.item(), s.item()), abs=1e-10)


@pytest.mark.parametrize("schedule", CLEAN.values(), ids=CLEAN.keys())
def test_the_data_end_is_exact(schedule):
    scale = {Trig(0.5): 2.0, MEMBERS["wide flow"]: 2.0}.get(schedule, 1.0)
    assert schedule.level(0) == Level(0.0, scale, 0.0)
    assert schedule.level(0).log_snr == schedule.log_snr(point(0.0)).item() == math.inf
    assert schedule.t_of(point(math.inf)).item() == 0


@pytest.mark.parametrize("schedule", ENDLESS.values(), ids=ENDLESS.keys())
def test_the_noise_end_is_exact(schedule):
    assert schedule.level(1) == Level(1.0, 0.0, 1.0)
    assert schedule.level(1).log_snr == schedule.log_snr(point(1.0)).item() == -math.inf
    assert schedule.t_of(point(-math.inf)).item() == pytest.approx(1, abs=1e-10)
    assert schedule.prior_std == 1


FINITE = {
    "linear": (LinearVP(), math.exp(-10.05)),
    "ve": (VE(), 2500.0**-1),
    "edm": (EDM(), 6400.0**-1),
    "vdm": (LinearLogSNR(), math.exp(-5)),
    "learned": (MEMBERS["learned"], math.exp(-5)),
    "stable": (VP, None),
}


@pytest.mark.parametrize("name", FINITE)
def test_the_other_noise_ends_keep_some_data(name):
    schedule, snr = FINITE[name]
    level = schedule.level(1)
    assert schedule.prior_std == level.sigma
    if name == "linear":
        assert level.alpha**2 == pytest.approx(snr, rel=1e-12)
    elif snr:
        assert level.log_snr == pytest.approx(math.log(snr), abs=1e-12)


def test_infinite_sigma_is_refused():
    with pytest.raises(InputError, match="sigma is infinite at t = 1"):
        MEMBERS["iddpm in ve"].level(1)
    with pytest.raises(InputError, match="sigma is infinite"):
        levels_of(VE(), [-math.inf])
    assert MEMBERS["iddpm in ve"].level(0.999).alpha == 1


@members
def test_nothing_is_undefined(schedule):
    times = torch.cat([torch.zeros(1).double(), TIMES])
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr):
        assert not bool(function(times).isnan().any())
    for function in (schedule.drift, schedule.diffusion):
        assert bool(function(INSIDE).isfinite().all())


@members
def test_both_formulas_of_the_diffusion_agree(schedule):
    """g^2 = d sigma^2 / dt - 2 f sigma^2 = -sigma^2 d log_snr / dt."""
    times = INSIDE.clone().requires_grad_()
    rate = torch.autograd.grad(schedule.sigma(times).square().sum() + 0 * times.sum(), times)[0]
    sigma = schedule.sigma(INSIDE).detach()
    squared = schedule.diffusion(INSIDE).square()
    # near the data end two large terms cancel in the first formula where alpha moves
    assert ((rate - 2 * schedule.drift(INSIDE) * sigma.square()) / squared - 1).abs().max() < 1e-9


@members
def test_the_forward_process_has_the_variance_of_the_schedule(schedule):
    """d sigma^2 / dt = 2 f sigma^2 + g^2."""
    first, last = 0.02, 0.98

    def rate(t, variance):
        at = point(t)
        return 2 * schedule.drift(at).item() * variance + schedule.diffusion(at).item() ** 2

    if schedule in (VP, MEMBERS["stable to zero"]):  # a kink at every timestep: a few of them are enough
        first, last = 0.5, 0.505
    start = schedule.sigma(point(first)).item() ** 2
    solved = integrate.solve_ivp(rate, (first, last), [start], method="DOP853", rtol=1e-8, atol=1e-18)
    expected = schedule.sigma(point(last)).item() ** 2
    assert solved.y[0, -1] == pytest.approx(expected, rel=1e-6)


def circle(alpha):
    return alpha, math.sqrt(1 - alpha**2)


def cosine(t):
    return circle(math.cos(math.pi / 2 * (t + 0.008) / 1.008) / math.cos(math.pi / 2 * 0.008 / 1.008))


def linear(t):
    return math.exp(-(20 - 0.1) * t**2 / 4 - 0.1 * t / 2)


def logistic(x):
    return 1 / (1 + math.exp(-x))


def from_log_snr(value):
    return math.sqrt(logistic(value)), math.sqrt(logistic(-value))


def towards_zero(alpha, last):
    return circle((alpha - last) / (1 - last))


def unit_variance(noise, data_std=0.5):
    """c_in of EDM, and the noise that it leaves."""
    scale = 1 / math.hypot(noise, data_std)
    return scale, scale * noise


FORMULAS = {
    "linear": lambda t: circle(linear(t)),
    "sub-vp": lambda t: (linear(t), 1 - linear(t) ** 2),
    "cosine": cosine,
    "sigmoid": lambda t: circle(
        math.sqrt((logistic(3) - logistic(6 * t - 3)) / (logistic(3) - logistic(-3))),
    ),
    "steep sigmoid": lambda t: circle(
        math.sqrt((logistic(10) - logistic(3 * t / 0.3)) / (logistic(10) - logistic(0))),
    ),
    "vdm": lambda t: from_log_snr(13.3 - 18.3 * t),
    "laplace": lambda t: from_log_snr(stats.laplace.isf(t, 0, 0.5)),
    "cauchy": lambda t: from_log_snr(stats.cauchy.isf(t)),
    "ve": lambda t: (1, 0.01 * 5000**t),
    "edm": lambda t: (1, (0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7),
    "flow": lambda t: (1 - t, t),
    "trig": lambda t: (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)),
    "trig of data 0.5": lambda t: (2 * math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)),
    "linear to zero": lambda t: towards_zero(linear(t), linear(1)),
    "shifted flow": lambda t: (1 - 3 * t / (1 + 2 * t), 3 * t / (1 + 2 * t)),
    "iddpm in ve": lambda t: (1, cosine(t)[1] / cosine(t)[0]),
    "edm as its network sees it": lambda t: unit_variance(FORMULAS["edm"](t)[1]),
    "flow on the circle": lambda t: ((1 - t) / math.hypot(t, 1 - t), t / math.hypot(t, 1 - t)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_members_are_their_formulas(name):
    for t in (0.01, 0.1, 0.3, 0.5, 0.77, 0.9, 0.99):
        level = MEMBERS[name].level(t)
        assert (level.alpha, level.sigma) == pytest.approx(FORMULAS[name](t), rel=1e-9), t


def test_a_shift_is_a_translation_on_the_same_curve():
    base, shifted = SubVP(), Shifted(SubVP(), 2.0)
    assert torch.allclose(shifted.log_snr(INSIDE), base.log_snr(INSIDE) - 2 * math.log(2), rtol=0, atol=1e-13)
    sigma, alpha = shifted.sigma(INSIDE), shifted.alpha(INSIDE)
    assert torch.allclose(sigma, 1 - alpha.square(), rtol=1e-12, atol=0)


def test_a_chain_is_trained_from_its_first_timestep_on_and_what_derives_from_it_too():
    found = {name: MEMBERS[name].t_min for name in ("flow", "edm", "learned", "stable", "short")}
    assert found == {"flow": 0, "edm": 0, "learned": 0, "stable": 0.001, "short": 0.25}
    assert all(derived.t_min == 0.001 for derived in (Shifted(VP, 2.0), InVE(VP), Preconditioned(VP)))


def test_total_variance_keeps_the_snr_and_sets_the_scale():
    base, scaled = Flow(), MEMBERS["wide flow"]
    assert torch.equal(scaled.log_snr(INSIDE), base.log_snr(INSIDE))
    total = torch.hypot(scaled.alpha(INSIDE), scaled.sigma(INSIDE))
    assert torch.allclose(total, wide(base.log_snr(INSIDE)), rtol=1e-13, atol=0)


@members
def test_coefficients_are_float64_for_any_time(schedule):
    times = torch.tensor([0.25, 0.5], dtype=torch.float32)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.drift, schedule.diffusion):
        assert function(times).dtype == torch.float64
        assert torch.equal(function(times), function(times.double()))
    assert schedule.alpha(times.reshape(1, 2)).shape == (1, 2)


@members
@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_a_time_outside_is_refused(schedule, t):
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        levels_at(schedule, [0.5, t])


def test_a_learned_schedule_learns():
    schedule = LearnedLogSNR(width=8)
    schedule.log_snr(point(0.4)).backward()
    gradients = [parameter.grad for parameter in schedule.parameters()]
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)
    assert [schedule.log_snr(point(t)).item() for t in (0.0, 1.0)] == pytest.approx([13.3, -5], abs=1e-14)
    # its start is nearly the straight line, and the bent one is not
    straight = LinearLogSNR().log_snr(INSIDE)
    assert (LearnedLogSNR().log_snr(INSIDE) - straight).abs().max() < 0.5
    assert (MEMBERS["learned"].log_snr(INSIDE) - straight).abs().max() > 0.5
