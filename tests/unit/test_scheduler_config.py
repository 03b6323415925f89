"""Diffusers' scheduler configurations: the schedule that they name, and the levels that their schedulers visit."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level
from logsnr.schedules.families import DiscreteVP, Flow, LinearVP, scaled_linear, zero_terminal
from logsnr.schedules.grids import DATA
from logsnr.schedules.origins import is_flow
from logsnr.schedules.prediction import predict
from logsnr.schedules.scheduler_config import (
    from_scheduler_config,
    kind_of,
    rule_of,
    scheduler_grid,
    time_of,
    timestep_of,
)

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = scaled_linear()
SPACINGS = ("linspace", "leading", "trailing")
STEPS = (1, 2, 3, 7, 8, 20, 50)


def scheduler(name, **config):
    return getattr(diffusers, f"{name}Scheduler")(**config)


def own_sigmas(planned):
    """A scheduler's sigmas, repeated ones once; where the last step would lead nowhere it leads to the data."""
    sigmas = planned.sigmas.tolist()
    return [*dict.fromkeys(sigmas), *([0.0] if 0 < sigmas[-1] == sigmas[-2] else [])]


def noise_of(levels, *, flow=False):
    """What diffusers calls sigma."""
    return [level.sigma if flow else level.sigma / level.alpha if level.alpha else math.inf for level in levels]


def timesteps_of(levels):
    return [level.t * 1000 - 1 for level in levels[:-1]]


@pytest.mark.parametrize(
    "config",
    [
        STABLE,
        {},
        {"beta_schedule": "linear", "num_train_timesteps": 50},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "laplace", "num_train_timesteps": 100},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.3, 0.5]},
    ],
    ids=repr,
)
def test_a_chain_is_diffusers_at_integer_timesteps(config):
    planned = DDPMScheduler(**config)
    schedule = from_scheduler_config(planned.config)
    cumulative = planned.alphas_cumprod.double()
    times = torch.arange(1, len(cumulative) + 1, dtype=torch.float64) / len(cumulative)
    # diffusers multiplies in float32
    assert torch.allclose(schedule.alpha(times).square(), cumulative, rtol=1e-5, atol=1e-9)
    assert torch.allclose(schedule.sigma(times).square(), 1 - cumulative, rtol=0, atol=1e-6)
    assert bool((schedule.log_snr(times).diff() < 0).all())


def test_the_capped_cosine_ends_at_large_but_finite_noise():
    level = from_scheduler_config({"beta_schedule": "squaredcos_cap_v2"}).level(1)
    assert level.sigma / level.alpha == pytest.approx(2e4, rel=0.05)


def test_a_linear_chain_approaches_its_continuous_form():
    found = from_scheduler_config({"beta_schedule": "linear"})
    times = torch.linspace(0.1, 1, 50, dtype=torch.float64)
    assert (found.log_snr(times) - LinearVP().log_snr(times)).abs().max() < 0.15


def test_what_a_network_was_trained_on_is_read_from_its_scheduler():
    assert from_scheduler_config(FlowMatchEulerDiscreteScheduler().config) == Flow()
    assert from_scheduler_config({"prediction_type": "flow_prediction"}) == Flow()
    assert from_scheduler_config(STABLE) == VP
    assert from_scheduler_config({**STABLE, "rescale_betas_zero_snr": True}) == zero_terminal(VP)


def test_zero_terminal_is_diffusers_rescaled_chain():
    planned = DDIMScheduler(**STABLE, rescale_betas_zero_snr=True)
    schedule = from_scheduler_config(planned.config)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    # near the end float32 keeps three digits of diffusers' betas
    assert (schedule.alpha(times).square() - planned.alphas_cumprod.double()).abs().max() < 1e-6
    assert schedule.level(1) == Level(1.0, 0.0, 1.0)


def test_a_chain_with_more_noise_is_diffusers_own():
    """CogVideoX divides the signal-to-noise ratio of its betas by 3."""
    planned = scheduler("CogVideoXDDIM")
    schedule = from_scheduler_config(planned.config)
    times = torch.arange(1, 1000, dtype=torch.float64) / 1000
    assert torch.allclose(schedule.alpha(times).square(), planned.alphas_cumprod[:-1].double(), rtol=1e-5, atol=1e-9)
    assert (schedule.log_snr(times) - VP.log_snr(times) + math.log(3)).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"beta_schedule": "odd"}, "'odd' is not known"),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 1348.0},
            "ScoreSdeVeScheduler is not mapped, for its network",
        ),
        ({"_class_name": "TheirScheduler", "tau": 1.0}, "TheirScheduler has no betas, no flow and not EDM's"),
        (scheduler("FlowMatchEulerDiscrete", invert_sigmas=True).config, "invert_sigmas"),
        ({"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 1.0}, "FlowMapEulerDiscreteScheduler is not mapped"),
    ],
)
def test_schedules_that_are_not_mapped_are_refused(config, message):
    with pytest.raises(UnsupportedError, match=message):
        from_scheduler_config(config)


EDM_SETTINGS = (
    {},
    {"sigma_min": 0.01, "sigma_max": 50.0, "sigma_data": 1.0, "rho": 5.0},
    {"sigma_schedule": "exponential", "sigma_max": 120.0, "prediction_type": "v_prediction"},
)


@pytest.mark.parametrize("settings", EDM_SETTINGS, ids=str)
@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
def test_edm_is_read_in_the_scale_that_its_network_sees(name, settings):
    """What diffusers computes by its preconditioning: input, output, what the network is told, and the levels."""
    planned = scheduler(name, **settings)
    schedule, kind = from_scheduler_config(planned.config), kind_of(planned.config)
    x0, eps = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for steps in STEPS[1:]:
        planned.set_timesteps(steps)
        levels = scheduler_grid(planned, schedule, steps)
        assert noise_of(levels) == pytest.approx(own_sigmas(planned), rel=1e-6, abs=1e-12)
        told = [timestep_of(planned.config, level) for level in levels[:-1]]
        assert told == pytest.approx(planned.timesteps.tolist(), rel=1e-5, abs=1e-5)
        times = [time_of(planned.config, schedule, timestep) for timestep in told]
        assert times == pytest.approx(np.linspace(1, 0, steps), abs=1e-5)
        # what is told stays in [0, 1], which diffusers' float32 sigmas leave by a billionth
        assert times == pytest.approx([min(max(level.t, 0.0), 1.0) for level in levels[:-1]], abs=1e-12)
        for sigma, level in zip(planned.sigmas.double(), levels[:-1], strict=False):
            xt = level.alpha * x0 + level.sigma * eps
            torch.testing.assert_close(xt, planned.precondition_inputs(x0 + sigma * eps, sigma), rtol=1e-6, atol=1e-6)
            found = predict(kind, xt, eps, level).x0
            expected = planned.precondition_outputs(x0 + sigma * eps, eps, sigma)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_output_of_an_edm_network_is_a_kind_with_a_number():
    kind = kind_of(scheduler("EDMEuler", sigma_data=0.25, prediction_type="v_prediction").config)
    assert (kind, kind.data_std, kind.sign) == ("-F of data 0.25", 0.25, -1)
    with pytest.raises(UnsupportedError, match="'sample' is not known: use one of epsilon, v_prediction"):
        kind_of(scheduler("EDMDPMSolverMultistep", prediction_type="sample").config)


def test_networks_are_told_timesteps_and_back():
    chain, flow = {**STABLE, "num_train_timesteps": 500}, {"prediction_type": "flow_prediction"}
    for config, schedule, told in ((chain, VP, 0.4 * 500 - 1), (flow, Flow(), 400.0)):
        assert timestep_of(config, schedule.level(0.4)) == pytest.approx(told, abs=1e-6)
        assert time_of(config, schedule, told) == pytest.approx(0.4, abs=1e-9)
    assert timestep_of(chain, VP.level(1e-4)) == 0


def test_a_grid_is_named_by_itself_or_by_the_options_of_the_scheduler():
    assert rule_of({}) == "scheduler"
    assert rule_of({"use_karras_sigmas": True}) == "karras"
    assert rule_of({"use_exponential_sigmas": True, "grid": "scheduler"}) == "log-snr"
    assert rule_of({"use_karras_sigmas": True, "grid": "tangent"}) == "tangent"


def test_the_kind_is_read_from_the_scheduler():
    names = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
    for name, kind in names.items():
        assert kind_of({"prediction_type": name}) == kind
    assert kind_of({}) == "eps"
    assert kind_of(FlowMatchEulerDiscreteScheduler().config) == "flow"
    with pytest.raises(UnsupportedError, match="'odd'"):
        kind_of({"prediction_type": "odd"})


# solvers with sigmas / alphas of integer timesteps, and with interpolated ones
ROUNDED = ("DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver")
EXACT = ("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete", "KDPM2Discrete")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", ROUNDED + EXACT)
def test_the_levels_are_the_schedulers_own(name, spacing, offset):
    planned = scheduler(name, **STABLE, timestep_spacing=spacing, steps_offset=offset)
    for steps in STEPS:
        planned.set_timesteps(steps)
        levels = scheduler_grid(planned, VP, steps)
        assert len(levels) == steps + 1
        assert noise_of(levels) == pytest.approx(own_sigmas(planned), rel=1e-12)
        own = planned.timesteps.double()
        assert all(float((own - k).abs().min()) < 1e-9 for k in timesteps_of(levels))
        # the timestep that goes with a level is that of its sigma on the chain
        expected = [VP.level(level.t) for level in levels[:-1]]
        assert noise_of(levels)[:-1] == pytest.approx(noise_of(expected), rel=2e-4)


def test_the_planned_scheduler_is_left_alone():
    planned = scheduler("DPMSolverMultistep", **STABLE)
    planned.set_timesteps(3)
    scheduler_grid(planned, VP, 8)
    assert len(planned.timesteps) == 3


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "LCM", "TCD"])
@pytest.mark.parametrize("steps", STEPS)
def test_schedulers_without_sigmas_visit_their_timesteps(name, steps):
    planned = scheduler(name, **STABLE)
    planned.set_timesteps(steps)
    levels = scheduler_grid(planned, VP, steps)
    assert levels[-1] == DATA
    assert timesteps_of(levels) == pytest.approx(planned.timesteps.tolist(), abs=1e-9)
    assert levels[0].alpha == pytest.approx(VP.level(levels[0].t).alpha, rel=5e-6)


def test_the_first_steps_of_pndm_add_no_levels():
    for steps in STEPS:
        found, expected = (
            scheduler_grid(PNDMScheduler(**STABLE, skip_prk_steps=skip), VP, steps) for skip in (False, True)
        )
        assert found == expected
        assert len(found) == steps + 1


def test_a_scheduler_that_ends_at_the_first_timestep_ends_there():
    """Stable Diffusion 1.x: the offset moves the timesteps up, the last step leads to timestep 0."""
    planned = PNDMScheduler(**STABLE, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)
    levels = scheduler_grid(planned, VP, 20)
    assert timesteps_of(levels) == pytest.approx(list(range(951, 0, -50)), abs=1e-9)
    assert levels[-1].t == 1 / 1000


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_a_last_step_that_would_lead_nowhere_leads_to_the_data(name):
    planned = scheduler(name, **STABLE, steps_offset=0, set_alpha_to_one=False)
    levels = scheduler_grid(planned, VP, 20)
    assert [level.t for level in levels][-3:] == [0.051, 0.001, 0]
    assert len(levels) == 21


FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("name", ROUNDED[:3] + EXACT[:1] + EXACT[2:])
def test_spaced_sigmas_are_the_schedulers_own(name, flag):
    planned = scheduler(name, **STABLE, **{flag: True})
    for steps in STEPS[1:]:
        planned.set_timesteps(steps)
        levels = scheduler_grid(planned, VP, steps)
        assert noise_of(levels) == pytest.approx(own_sigmas(planned), rel=1e-12)
        assert len(levels) == steps + 1
        # diffusers rounds or cuts some of its timesteps to integers
        timesteps = [VP.t_of(torch.tensor(level.log_snr)).item() * 1000 - 1 for level in levels[:-1]]
        assert timesteps_of(levels) == pytest.approx(timesteps, abs=1.01)


def test_lu_lambdas_and_a_last_level_of_some_noise():
    planned = scheduler("DPMSolverMultistep", **STABLE, use_lu_lambdas=True, final_sigmas_type="sigma_min")
    planned.set_timesteps(9)
    levels = scheduler_grid(planned, VP, 9)
    assert noise_of(levels) == pytest.approx(planned.sigmas.tolist(), rel=1e-12)
    assert levels[-1].sigma > 0
    assert levels[-1].t == 1 / 1000


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete", "DDIM"])
@pytest.mark.parametrize("flags", [{}, {"use_karras_sigmas": True}], ids=["plain", "karras"])
def test_zero_terminal_schedulers_start_at_exactly_no_data(name, flags):
    if name == "DDIM" and flags:
        return
    config = {**STABLE, **flags, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    planned = scheduler(name, **config, timestep_spacing="trailing")
    schedule = from_scheduler_config(planned.config)
    for steps in STEPS[1:]:
        levels = scheduler_grid(planned, schedule, steps)
        assert levels[0] == Level(1.0, 0.0, 1.0)
        assert all(level.alpha > 0 for level in levels[1:])
        if name != "DDIM":
            planned.set_timesteps(steps)
            assert noise_of(levels)[1:] == pytest.approx(own_sigmas(planned)[1:], rel=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_the_flow_schedulers_levels_are_its_own(kind, shift):
    planned = kind(shift=shift)
    for steps in range(1, 51):
        planned.set_timesteps(steps)
        levels = scheduler_grid(planned, Flow(), steps)
        assert noise_of(levels, flow=True) == pytest.approx(own_sigmas(planned), abs=1e-12)
        assert [level.alpha + level.sigma for level in levels] == pytest.approx([1] * (steps + 1), abs=1e-12)
        assert [level.t for level in levels] == pytest.approx([level.sigma for level in levels], abs=1e-6)


FLOW_OPTIONS = (
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"shift_terminal": 0.1},
    {"shift": 2.0, "use_karras_sigmas": True},
)


@pytest.mark.parametrize("options", FLOW_OPTIONS, ids=str)
def test_flow_options_are_followed(options):
    planned = FlowMatchEulerDiscreteScheduler(**options)
    planned.set_timesteps(6)
    assert noise_of(scheduler_grid(planned, Flow(), 6), flow=True) == pytest.approx(planned.sigmas.tolist(), abs=1e-12)


def test_dynamic_shifting_takes_mu():
    planned = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    found = noise_of(scheduler_grid(planned, Flow(), 6, mu=0.8), flow=True)
    plain = np.linspace(1, 1 / 1000, 6)
    assert found[:-1] == pytest.approx(math.e**0.8 / (math.e**0.8 + 1 / plain - 1), abs=1e-6)
    with pytest.raises(InputError, match="mu"):
        scheduler_grid(planned, Flow(), 6)


def test_explicit_sigmas_are_used():
    planned = FlowMatchEulerDiscreteScheduler(shift=3.0)
    found = noise_of(scheduler_grid(planned, Flow(), 3, sigmas=[1.0, 0.6, 0.2]), flow=True)
    assert found == pytest.approx([1, 1.8 / 2.2, 0.6 / 1.4, 0], abs=1e-6)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_multistep_solvers_of_flow_models_are_read(kind):
    planned = kind(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert is_flow(planned.config)
    planned.set_timesteps(7)
    levels = scheduler_grid(planned, Flow(), 7)
    assert noise_of(levels, flow=True) == pytest.approx(planned.sigmas.tolist(), abs=1e-12)
    assert [level.t * 1000 for level in levels[:-1]] == pytest.approx(planned.timesteps.tolist(), abs=1e-9)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(InputError, match=f"steps is {steps}"):
        scheduler_grid(scheduler("DDIM", **STABLE), VP, steps)


def test_what_the_scheduler_cannot_do_is_refused():
    with pytest.raises(InputError, match="DDIMScheduler cannot take 8 steps: odd is not supported"):
        scheduler_grid(DDIMScheduler(timestep_spacing="odd"), VP, 8)
    with pytest.raises(InputError, match="DDIMScheduler cannot take 1001 steps"):
        scheduler_grid(DDIMScheduler(), VP, 1001)
    with pytest.raises(InputError, match="DDIMScheduler cannot take 2 steps"):
        scheduler_grid(DDIMScheduler(), VP, 2, sigmas=[1.0, 0.5])


@pytest.mark.parametrize("name", ["DDIMInverse", "DPMSolverMultistepInverse"])
def test_schedulers_that_add_noise_are_refused(name):
    with pytest.raises(UnsupportedError, match="goes from data to noise"):
        scheduler_grid(scheduler(name, **STABLE), VP, 8)


def test_inverted_flow_is_refused():
    with pytest.raises(UnsupportedError, match="from data to noise"):
        scheduler_grid(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), Flow(), 8)


INSIDE = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
TIMES = torch.linspace(0, 1, 5001, dtype=torch.float64)


def test_the_noise_end_of_a_chain_is_its_last_timestep():
    level = DiscreteVP((0.5, 0.75)).level(1)
    assert (level.alpha**2, level.sigma**2) == pytest.approx((0.125, 0.875), abs=1e-15)


def test_a_chain_keeps_the_variance():
    for chain in (VP, DiscreteVP((0.1, 0.2, 0.4, 0.8))):
        assert (chain.alpha(TIMES).square() + chain.sigma(TIMES).square() - 1).abs().max() < 1e-15


def test_a_chain_is_linear_in_log_ratio_between_timesteps():
    first, middle, last = VP.log_snr(torch.tensor([0.5, 0.5004, 0.501], dtype=torch.float64)).tolist()
    assert middle == pytest.approx(0.6 * first + 0.4 * last, abs=1e-12)


def test_a_chain_to_zero_keeps_its_first_level():
    first = 1 / 1000
    assert zero_terminal(VP).level(first).alpha == pytest.approx(VP.level(first).alpha, rel=1e-14)
    alphas = VP.alpha(INSIDE), zero_terminal(VP).alpha(INSIDE)
    end, start = VP.level(1).alpha, VP.level(first).alpha
    assert torch.allclose(alphas[1], (alphas[0] - end) * start / (start - end), rtol=1e-7, atol=0)
