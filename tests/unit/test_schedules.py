"""Schedules against diffusers and closed forms, predictions there and back, and grids that are used as given."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import assume, given
from hypothesis import strategies as st

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.families import DiscreteVP, Flow, from_scheduler_config, scaled_linear
from logsnr.schedules.grids import DATA, GRIDS, check_grid, karras, scheduler_grid, uniform_log_snr, uniform_time
from logsnr.schedules.prediction import check_start, kind_of, output_of, predict

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = scaled_linear()
MEMBERS = [VP, Flow(), DiscreteVP((0.1, 0.2, 0.4, 0.8))]
TIMES = torch.cat(
    [torch.logspace(-12, -3, 200, dtype=torch.float64), torch.linspace(0.0011, 1, 5000, dtype=torch.float64)]
)
UNIT = st.floats(0, 1)

members = pytest.mark.parametrize("schedule", MEMBERS, ids=["stable", "flow", "short"])


@pytest.mark.parametrize(
    "config", [STABLE, {}, {"beta_schedule": "linear", "num_train_timesteps": 50}, {"trained_betas": [0.1, 0.3, 0.5]}]
)
def test_discrete_vp_is_diffusers_at_integer_timesteps(config):
    scheduler = DPMSolverMultistepScheduler(**config)
    schedule = from_scheduler_config(scheduler.config)
    cumulative = scheduler.alphas_cumprod.double()
    times = torch.arange(1, len(cumulative) + 1, dtype=torch.float64) / len(cumulative)
    assert torch.allclose(schedule.alpha(times).square(), cumulative, rtol=2e-6, atol=0)
    assert torch.allclose(schedule.sigma(times).square(), 1 - cumulative, rtol=0, atol=5e-7)


@members
def test_log_snr_falls_strictly(schedule):
    values = schedule.log_snr(TIMES)
    assert bool((values.diff() < 0).all())
    assert values.dtype == torch.float64


@members
def test_log_snr_is_that_of_alpha_and_sigma(schedule):
    times = TIMES[:-1]
    expected = 2 * (schedule.alpha(times).log() - schedule.sigma(times).log())
    assert torch.allclose(schedule.log_snr(times), expected, rtol=0, atol=1e-10)
    level = schedule.level(0.3)
    assert level.log_snr == pytest.approx(float(schedule.log_snr(torch.tensor(0.3, dtype=torch.float64))), abs=1e-12)
    assert level.log_ratio == level.log_snr / 2


@members
def test_time_is_found_from_log_snr(schedule):
    times = torch.cat([torch.zeros(1, dtype=torch.float64), TIMES])
    assert (schedule.t_of(schedule.log_snr(times)) - times).abs().max() < 1e-10


@members
@given(t=UNIT)
def test_time_is_found_from_log_snr_anywhere(schedule, t):
    point = torch.tensor(t, dtype=torch.float64)
    assert float(schedule.t_of(schedule.log_snr(point))) == pytest.approx(t, abs=1e-10)


@members
@given(share=UNIT)
def test_log_snr_is_found_from_time(schedule, share):
    low, high = (float(schedule.log_snr(torch.tensor(t, dtype=torch.float64))) for t in (0.9999, 1e-4))
    value = torch.tensor(low + share * (high - low), dtype=torch.float64)
    assert float(schedule.log_snr(schedule.t_of(value))) == pytest.approx(float(value), abs=1e-9)


@members
def test_the_data_end_is_exact(schedule):
    assert schedule.level(0) == Level(0.0, 1.0, 0.0)
    assert schedule.level(0).log_snr == math.inf
    assert float(schedule.t_of(torch.tensor(math.inf))) == 0


def test_the_noise_end_of_flow_is_exact():
    assert Flow().level(1) == Level(1.0, 0.0, 1.0)
    assert Flow().level(1).log_snr == -math.inf
    assert float(Flow().t_of(torch.tensor(-math.inf))) == 1


def test_the_noise_end_of_a_chain_is_its_last_timestep():
    level = DiscreteVP((0.5, 0.75)).level(1)
    assert (level.alpha**2, level.sigma**2) == pytest.approx((0.125, 0.875), abs=1e-15)


def test_flow_is_a_straight_line():
    assert torch.equal(Flow().alpha(TIMES), 1 - TIMES)
    assert torch.equal(Flow().sigma(TIMES), TIMES)
    expected = 2 * torch.log((1 - TIMES[:-1]) / TIMES[:-1])
    assert torch.allclose(Flow().log_snr(TIMES[:-1]), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [VP, MEMBERS[2]])
def test_a_chain_keeps_the_variance(schedule):
    assert (schedule.alpha(TIMES).square() + schedule.sigma(TIMES).square() - 1).abs().max() < 1e-15


def test_a_chain_is_linear_in_log_ratio_between_timesteps():
    times = torch.tensor([0.5, 0.5004, 0.501], dtype=torch.float64)
    first, middle, last = VP.log_snr(times).tolist()
    assert middle == pytest.approx(0.6 * first + 0.4 * last, abs=1e-12)


@members
def test_coefficients_are_float64_for_any_time(schedule):
    times = torch.tensor([0.25, 0.5], dtype=torch.float32)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr):
        assert function(times).dtype == torch.float64
        assert torch.equal(function(times), function(times.double()))
    assert schedule.alpha(times.reshape(1, 2)).shape == (1, 2)


@members
@pytest.mark.parametrize("t", [-1e-9, 1 + 1e-9, math.nan, math.inf])
def test_a_time_outside_is_refused(schedule, t):
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        schedule.level(t)


def test_what_a_network_was_trained_on_is_read_from_its_scheduler():
    assert from_scheduler_config(FlowMatchEulerDiscreteScheduler().config) == Flow()
    assert from_scheduler_config({"prediction_type": "flow_prediction"}) == Flow()
    assert from_scheduler_config(STABLE) == VP
    for config in ({"beta_schedule": "unknown"}, {**STABLE, "rescale_betas_zero_snr": True}):
        with pytest.raises(UnsupportedError, match="not supported yet"):
            from_scheduler_config(config)


KINDS = ("eps", "x0", "v", "flow")
kinds = pytest.mark.parametrize("kind", KINDS)


def pair(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return (torch.randn(5, 2, 3, generator=draws, dtype=torch.float64) for _ in range(2))


def there_and_back(kind, level):
    x0, eps = pair()
    output = output_of(kind, Prediction(x0, eps), level)
    return x0, eps, predict(kind, level.alpha * x0 + level.sigma * eps, output, level)


@kinds
@given(alpha=st.floats(1e-3, 2), sigma=st.floats(1e-3, 2))
def test_predictions_go_there_and_back(kind, alpha, sigma):
    x0, eps, found = there_and_back(kind, Level(0.5, alpha, sigma))
    assert (found.x0 - x0).abs().max() < 1e-10
    assert (found.eps - eps).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_the_data_end_needs_no_fudge(kind):
    x0, eps, found = there_and_back(kind, Level(0.0, 1.0, 0.0))
    assert (found.x0 - x0).abs().max() < 1e-14
    assert (found.eps - eps).abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_the_noise_end_needs_no_fudge(kind):
    x0, eps, found = there_and_back(kind, Level(1.0, 0.0, 1.0))
    assert (found.x0 - x0).abs().max() < 1e-14
    assert (found.eps - eps).abs().max() < 1e-14


def test_clean_data_has_no_noise():
    x0, _, found = there_and_back("x0", Level(0.0, 1.0, 0.0))
    assert torch.equal(found.x0, x0)
    assert torch.equal(found.eps, torch.zeros_like(x0))


def test_eps_cannot_start_without_data():
    with pytest.raises(InputError, match="alpha = 0"):
        check_start("eps", Level(1.0, 0.0, 1.0))
    check_start("eps", VP.level(1))
    for kind in ("x0", "v", "flow"):
        check_start(kind, Level(1.0, 0.0, 1.0))


def test_outputs_are_what_the_papers_define():
    x0, eps = pair()
    level, prediction = Level(0.3, 0.6, 0.8), Prediction(x0, eps)
    assert torch.equal(output_of("eps", prediction, level), eps)
    assert torch.equal(output_of("x0", prediction, level), x0)
    assert torch.equal(output_of("v", prediction, level), 0.6 * eps - 0.8 * x0)
    assert torch.equal(output_of("flow", prediction, level), eps - x0)


def test_unknown_kinds_are_refused():
    x0, eps = pair()
    level = Level(0.3, 0.6, 0.8)
    with pytest.raises(InputError, match="'score'"):
        predict("score", x0, eps, level)
    with pytest.raises(InputError, match="'score'"):
        output_of("score", Prediction(x0, eps), level)


def test_the_kind_is_read_from_the_scheduler():
    names = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    for name, kind in names.items():
        assert kind_of({"prediction_type": name}) == kind
    assert kind_of({}) == "eps"
    assert kind_of(FlowMatchEulerDiscreteScheduler().config) == "flow"
    with pytest.raises(UnsupportedError, match="'odd'"):
        kind_of({"prediction_type": "odd"})


def grid(name, schedule, steps):
    start = {} if name == "time" or schedule is not MEMBERS[1] else {"start": 0.999}
    return GRIDS[name](schedule, steps, **start)


@members
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 400])
def test_grids_are_strictly_monotone_and_as_long_as_asked(schedule, name, steps):
    levels = grid(name, schedule, steps)
    assert len(levels) == steps + 1
    assert levels[-1] == DATA
    assert all(there.log_snr > here.log_snr and there.t < here.t for here, there in pairwise(levels))


@members
def test_uniform_time_is_uniform_in_time(schedule):
    levels = uniform_time(schedule, 8, start=0.8)
    assert [level.t for level in levels] == pytest.approx([0.1 * i for i in range(8, -1, -1)], abs=1e-15)


def test_uniform_log_snr_is_uniform_in_log_snr():
    values = [level.log_snr for level in uniform_log_snr(VP, 9, start=0.9, end=0.01)[:-1]]
    ends = VP.log_snr(torch.tensor([0.9, 0.01], dtype=torch.float64)).tolist()
    assert values == pytest.approx([ends[0] + i / 8 * (ends[1] - ends[0]) for i in range(9)], abs=1e-9)


def test_karras_is_the_formula():
    levels = karras(VP, 6, start=0.9, end=0.01, grid_exponent=5)[:-1]
    found = [level.sigma / level.alpha for level in levels]
    high, low = found[0] ** 0.2, found[-1] ** 0.2
    assert found == pytest.approx([(high + i / 5 * (low - high)) ** 5 for i in range(6)], rel=1e-9)
    assert (levels[0].t, levels[-1].t) == pytest.approx((0.9, 0.01), abs=1e-10)


@pytest.mark.parametrize("name", ["log-snr", "karras"])
def test_a_grid_in_log_snr_cannot_start_at_infinite_noise(name):
    with pytest.raises(InputError, match="infinite noise"):
        GRIDS[name](Flow(), 4)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("name", GRIDS)
def test_no_steps_are_refused(name, steps):
    for ask in (lambda: GRIDS[name](VP, steps), lambda: scheduler_grid(VP, STABLE, steps)):
        with pytest.raises(InputError, match=f"steps is {steps}"):
            ask()


@pytest.mark.parametrize("times", [[0.5, 0.5, 0.0], [0.5, 0.6, 0.0], [0.5, 0.0, 0.0], [0.0, 0.5]])
def test_a_grid_that_is_not_monotone_is_refused(times):
    with pytest.raises(InputError, match="does not fall strictly"):
        check_grid([VP.level(t) for t in times])


def test_a_grid_of_one_level_is_refused():
    with pytest.raises(InputError, match="at least two"):
        check_grid([DATA])


@given(times=st.lists(UNIT, min_size=2, max_size=8, unique=True))
def test_any_falling_times_are_used_as_given(times):
    times = sorted(times, reverse=True)
    assume(all(here - there > 1e-9 for here, there in pairwise(times)))
    levels = [Flow().level(t) for t in times]
    assert check_grid(levels) == levels


@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_the_schedulers_grid_is_diffusers_own(spacing, offset):
    scheduler = DPMSolverMultistepScheduler(**STABLE, timestep_spacing=spacing, steps_offset=offset)
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        levels = scheduler_grid(VP, scheduler.config, steps)
        assert len(levels) == steps + 1
        assert [level.t * 1000 - 1 for level in levels[:-1]] == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9)
        ratios = [level.sigma / level.alpha for level in levels]
        assert ratios == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_flow_schedulers_grid_is_diffusers_own(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        levels = scheduler_grid(Flow(), scheduler.config, steps)
        assert [level.sigma for level in levels] == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "flag", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"]
)
def test_options_that_are_not_mapped_are_refused(flag):
    with pytest.raises(UnsupportedError, match=flag):
        scheduler_grid(VP, {**STABLE, flag: True}, 4)


@pytest.mark.parametrize(
    "options",
    [{"use_dynamic_shifting": True}, {"use_karras_sigmas": True}, {"invert_sigmas": True}, {"shift_terminal": 0.1}],
)
def test_flow_options_that_are_not_mapped_are_refused(options):
    with pytest.raises(UnsupportedError, match=next(iter(options))):
        scheduler_grid(Flow(), FlowMatchEulerDiscreteScheduler(**options).config, 4)


def test_what_the_scheduler_cannot_do_is_refused():
    with pytest.raises(UnsupportedError, match="'odd'"):
        scheduler_grid(VP, {**STABLE, "timestep_spacing": "odd"}, 4)
    with pytest.raises(InputError, match="1000 steps are more"):
        scheduler_grid(VP, STABLE, 1000)
