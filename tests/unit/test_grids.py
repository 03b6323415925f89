"""Grids: strictly monotone, as long as asked, used as given, and each by its formula."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import assume, given
from hypothesis import strategies as st
from members import MEMBERS, VP
from scipy import stats

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.curve import Curve, curve
from logsnr.schedules.families import EDM, VE, Cosine, Flow, LinearLogSNR, Trig, scaled_linear
from logsnr.schedules.grids import (
    DATA,
    GRIDS,
    align_your_steps,
    beta_quantiles,
    check_grid,
    early_log_snr,
    entropic,
    grid_of_noise,
    karras,
    tangent,
    uniform_log_snr,
    uniform_time,
)

SOME = ("stable", "flow", "short", "cosine", "edm", "vdm")
FINITE_START = ("log-snr", "log-snr-early", "karras", "beta")
PUBLISHED = {"ays-sd": "StableDiffusion", "ays-sdxl": "StableDiffusionXL"}
RULES = [name for name in GRIDS if name not in PUBLISHED]

members = pytest.mark.parametrize("schedule", [MEMBERS[name] for name in SOME], ids=SOME)


def grid(name, schedule, steps):
    endless = schedule.level(1).alpha == 0 and name in FINITE_START
    return GRIDS[name](schedule, steps, **({"start": 0.999} if endless else {}))


def ratios(levels):
    """s = sigma / alpha of the noisy levels."""
    return [level.sigma / level.alpha for level in levels[:-1]]


@members
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 400])
def test_grids_are_strictly_monotone_and_as_long_as_asked(schedule, name, steps):
    levels = grid(name, schedule, steps)
    assert len(levels) == steps + 1
    assert levels[-1] == DATA
    assert all(there.log_snr > here.log_snr for here, there in pairwise(levels))
    assert all(there.t < here.t for here, there in pairwise(levels[:-1]))
    assert levels[0].t == pytest.approx(0.999 if levels[0].t < 1 and schedule.level(1).alpha == 0 else 1, abs=1e-10)


@members
@pytest.mark.parametrize("name", RULES)
def test_the_levels_of_a_grid_are_those_of_the_schedule(schedule, name):
    for level in grid(name, schedule, 9)[:-1]:
        expected = schedule.level(min(level.t, 1.0))
        assert (level.alpha, level.sigma) == pytest.approx((expected.alpha, expected.sigma), rel=1e-9)


@members
def test_uniform_time_is_uniform_in_time(schedule):
    levels = uniform_time(schedule, 8, start=0.8)
    assert [level.t for level in levels] == pytest.approx([0.1 * i for i in range(8, -1, -1)], abs=1e-15)


def test_uniform_log_snr_is_uniform_in_log_snr():
    values = [level.log_snr for level in uniform_log_snr(VP, 9, start=0.9, end=0.01)[:-1]]
    ends = VP.log_snr(torch.tensor([0.9, 0.01], dtype=torch.float64)).tolist()
    assert values == pytest.approx([ends[0] + i / 8 * (ends[1] - ends[0]) for i in range(9)], abs=1e-9)


def test_karras_is_the_formula():
    levels = karras(VP, 6, start=0.9, end=0.01, grid_exponent=5)
    found = ratios(levels)
    high, low = found[0] ** 0.2, found[-1] ** 0.2
    assert found == pytest.approx([(high + i / 5 * (low - high)) ** 5 for i in range(6)], rel=1e-9)
    assert (levels[0].t, levels[-2].t) == pytest.approx((0.9, 0.01), abs=1e-10)


def test_karras_of_edm_is_uniform_in_its_time():
    found = [level.t for level in karras(EDM(), 5, end=0.0)[:-1]]
    assert found == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-12)


def test_beta_quantiles_are_scipys():
    levels = beta_quantiles(VP, 7, start=0.9, end=0.01)
    found = ratios(levels)
    shares = [(value - found[-1]) / (found[0] - found[-1]) for value in found]
    assert stats.beta.cdf(shares, 0.6, 0.6) == pytest.approx(np.linspace(1, 0, 7), abs=1e-9)


@pytest.mark.parametrize("data_std", [0.25, 1.0])
def test_tangent_is_uniform_in_the_angle(data_std):
    """s_i = data_std tan((1 - i / N) atan(s_max / data_std))."""
    highest = ratios(uniform_time(VP, 1))[0]
    expected = [data_std * math.tan((1 - i / 9) * math.atan(highest / data_std)) for i in range(9)]
    assert ratios(tangent(VP, 9, data_std=data_std)) == pytest.approx(expected, rel=1e-9)


def test_tangent_starts_at_infinite_noise():
    levels = tangent(Flow(), 4, data_std=0.5)
    assert levels[0] == Level(1.0, 0.0, 1.0)
    assert ratios(levels[1:]) == pytest.approx([0.5 * math.tan(k * math.pi / 8) for k in (3, 2, 1)], rel=1e-12)
    # of Trig it is uniform in time
    assert [level.t for level in tangent(Trig(0.5), 5, data_std=0.5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])


@pytest.mark.parametrize("tilt", [0.0, 0.25])
@pytest.mark.parametrize("power", [0.25, 0.5])
def test_entropic_levels_have_equal_shares_of_a_known_cumulative(power, tilt):
    """With error = s^2 the rate is s^tilt, whose integral over log(s) is s^tilt / tilt, or log(s) at tilt 0."""
    log_s = np.linspace(-8, 8, 4001)
    error = curve((-log_s).tolist(), np.exp(2 * log_s).tolist())
    found = ratios(entropic(VE(), 11, error, power=power, tilt=tilt))
    cumulative = np.log(found) if tilt == 0 else np.array(found) ** tilt
    assert (found[0], found[-1]) == pytest.approx((50, 0.01), rel=1e-9)
    assert np.diff(cumulative) == pytest.approx(np.full(10, (cumulative[-1] - cumulative[0]) / 10), rel=2e-5)


def test_entropic_levels_gather_where_the_error_is_unusual():
    quiet, loud = Curve((-4.0, 4.0), (1e-6, 1e-6)), Curve((-0.1, 0.0, 0.1), (1e-6, 1.0, 1e-6))
    counts = [sum(0.8 < s < 1.25 for s in ratios(entropic(VE(), 40, error, power=0.25))) for error in (quiet, loud)]
    assert counts[1] > 3 * counts[0]


@pytest.mark.parametrize("name", FINITE_START)
def test_a_grid_in_log_snr_cannot_start_at_infinite_noise(name):
    with pytest.raises(InputError, match="infinite noise"):
        GRIDS[name](Flow(), 4)


def test_an_entropic_grid_cannot_start_at_infinite_noise():
    with pytest.raises(InputError, match="infinite noise"):
        entropic(Flow(), 4, Curve((0.0,), (1.0,)))


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", GRIDS)
def test_no_steps_are_refused(name, steps):
    with pytest.raises(InputError, match=f"steps is {steps}"):
        GRIDS[name](VP, steps)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_levels_are_those_of_diffusers_at_ten_steps(name):
    levels = GRIDS[name](VP, 10)
    assert [*ratios(levels), 0] == pytest.approx(AysSchedules[f"{PUBLISHED[name]}Sigmas"], rel=1e-12)
    # the published timesteps are those of Stable Diffusion's chain, rounded
    timesteps = [level.t * 1000 - 1 for level in levels[:-1]]
    assert timesteps == pytest.approx(AysSchedules[f"{PUBLISHED[name]}Timesteps"], abs=1.5)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_levels_of_other_numbers_of_steps_lie_between_in_log_noise(name):
    table = np.log(AysSchedules[f"{PUBLISHED[name]}Sigmas"][:-1])
    assert np.log(ratios(GRIDS[name](VP, 19)))[::2] == pytest.approx(table, abs=1e-12)
    assert np.log(ratios(GRIDS[name](VP, 19)))[1::2] == pytest.approx((table[1:] + table[:-1]) / 2, abs=1e-12)
    for steps in (1, 2, 7, 50):
        levels = GRIDS[name](VP, steps)
        assert len(levels) == steps + 1
        assert levels[0].t == 1
        assert all(there.t < here.t for here, there in pairwise(levels[:-1]))


@pytest.mark.parametrize("schedule", [Flow(), Cosine(), EDM(), LinearLogSNR()], ids=lambda s: type(s).__name__)
def test_published_levels_of_another_model_are_refused(schedule):
    with pytest.raises(InputError, match=r"no levels for this model: its noise ends at .* Stable Diffusion at 14.6"):
        align_your_steps(schedule, 10)


def test_a_grid_of_noise_is_used_as_given():
    levels = grid_of_noise(Flow(), [4.0, 1.0, 0.25])
    assert [level.sigma for level in levels] == pytest.approx([0.8, 0.5, 0.2, 0], abs=1e-14)
    with pytest.raises(InputError, match="positive"):
        grid_of_noise(Flow(), [1.0, 0.0])
    for noise in ([1.0, 1.0], [1.0, 2.0]):
        with pytest.raises(InputError, match="does not fall strictly"):
            grid_of_noise(Flow(), noise)


@pytest.mark.parametrize("times", [[0.5, 0.5, 0.0], [0.5, 0.6, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5]])
def test_a_grid_that_is_not_monotone_is_refused(times):
    with pytest.raises(InputError, match="does not fall strictly"):
        check_grid([VP.level(t) for t in times])


def test_a_grid_of_one_level_is_refused():
    with pytest.raises(InputError, match="at least two"):
        check_grid([DATA])


@given(times=st.lists(st.floats(0, 1), min_size=2, max_size=8, unique=True))
def test_any_falling_times_are_used_as_given(times):
    times = sorted(times, reverse=True)
    assume(all(here - there > 1e-9 for here, there in pairwise(times)))
    levels = [Flow().level(t) for t in times]
    assert check_grid(levels) == levels


def test_a_curve_is_linear_between_points_and_constant_outside():
    found = curve([1, -1, 0], [4, 0, 1])
    assert found == Curve((-1.0, 0.0, 1.0), (0.0, 1.0, 4.0))
    assert found(np.array([-3, -0.5, 0.25, 9])).tolist() == [0, 0.5, 1.75, 4]
    assert float(found(0.5)) == 2.5


@pytest.mark.parametrize(
    ("points", "values"), [((), ()), ((0.0, 1.0), (1.0,)), ((0.0, 0.0), (1.0, 1.0)), ((0.0,), (math.nan,))]
)
def test_impossible_curves_are_refused(points, values):
    with pytest.raises(InputError, match="a curve"):
        Curve(points, values)


def test_the_early_grid_leaves_the_noise_by_its_number_of_steps():
    """At s = 0.6 / steps, and where that is below the end of training, at that end."""
    schedule = scaled_linear()
    for steps, last in ((5, 0.12), (10, 0.06), (100, schedule_end(schedule))):
        levels = early_log_snr(schedule, steps)
        assert levels[-2].sigma / levels[-2].alpha == pytest.approx(last, rel=1e-6)
        gaps = np.diff([level.log_snr for level in levels[:-1]])
        assert gaps == pytest.approx(gaps[0], rel=1e-6)


def schedule_end(schedule):
    """sigma / alpha where `log-snr` ends."""
    return math.exp(-float(schedule.log_snr(torch.tensor(1e-3, dtype=torch.float64))) / 2)
