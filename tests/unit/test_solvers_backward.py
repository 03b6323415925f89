"""The names that the noise multiplier has elsewhere, and what it may be."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

from logsnr.core.errors import InputError
from logsnr.schedules.families import Cosine, Flow, scaled_linear
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.backward import (
    PRESETS,
    check_rho,
    churn_of_rho,
    eta_of_rho,
    is_noisy,
    kernel_std_of_rho,
    rho_of_churn,
    rho_of_eta,
    rho_of_kernel_std,
    rho_of_step,
    sit_w_of_rho,
)
from logsnr.solvers.weights import step_weights

SOME = st.floats(0.05, 1.0)
STEP = st.floats(1e-3, 3)


@pytest.mark.parametrize(("h", "eta"), [(1.0, 0.914), (0.3, 0.841), (0.1, 0.814), (0.01, 0.801)])
def test_the_eta_of_rho_point_eight(h, eta):
    assert eta_of_rho(0.8, h) == pytest.approx(eta, abs=5e-4)


@given(rho=SOME, h=STEP)
def test_inverses(rho, h):
    assert rho_of_eta(eta_of_rho(rho, h), h) == pytest.approx(rho, rel=1e-6)
    assert rho_of_churn(churn_of_rho(rho, h), h) == pytest.approx(rho, rel=1e-9)
    assert rho_of_kernel_std(kernel_std_of_rho(rho, 0.7, h), 0.7, h) == pytest.approx(rho, rel=1e-6)


@given(rho=st.floats(0, 2))
def test_short_steps(rho):
    h, g = 1e-7, 1.7
    assert eta_of_rho(rho, h) == pytest.approx(rho, rel=1e-5, abs=1e-12)
    # the kernel's variance tends to rho^2 g^2 dt, where g^2 dt = 2 sigma^2 h
    assert kernel_std_of_rho(rho, g, h) ** 2 == pytest.approx(2 * (rho * g) ** 2 * h, rel=1e-5, abs=1e-20)
    assert churn_of_rho(rho, h) == pytest.approx(rho**2 * h, rel=1e-5, abs=1e-20)


@pytest.mark.parametrize("h", [1e-6, 0.3, 5.0, math.inf])
def test_the_ode_and_the_reverse_sde(h):
    assert eta_of_rho(0, h) == kernel_std_of_rho(0, 0.7, h) == 0
    assert eta_of_rho(1, h) == pytest.approx(1, rel=1e-15)
    assert kernel_std_of_rho(1, 0.7, h) == pytest.approx(0.7 * math.sqrt(-math.expm1(-2 * h)), rel=1e-15)


def test_infinite_steps_forget_everything():
    assert kernel_std_of_rho(0.1, 0.7, math.inf) == 0.7
    assert rho_of_kernel_std(0.7, 0.7, 1.0) == math.inf


@pytest.mark.parametrize("rho", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("timesteps", [(900, 700), (500, 480), (40, 20)])
def test_eta_is_diffusers_own(rho, timesteps):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    here, there = (scaled_linear().level((k + 1) / 1000) for k in timesteps)
    h = there.log_ratio - here.log_ratio
    std = eta_of_rho(rho, h) * float(scheduler._get_variance(*timesteps)) ** 0.5
    assert step_weights(here, there, (here,), rho).noise == pytest.approx(std, rel=1e-4)
    assert kernel_std_of_rho(rho, there.sigma, h) == pytest.approx(std, rel=1e-4)


@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("rho", [0.5, 1.0, 1.5])
def test_w_is_the_rate_of_the_noise_in_time(schedule, rho):
    """A short step of SiT's SDE adds variance w dt, one of ours the same."""
    t, dt = 0.6, 1e-6
    here, there = schedule.level(t), schedule.level(t - dt)
    w = sit_w_of_rho(rho, schedule.diffusion(torch.tensor(t)).item())
    assert step_weights(here, there, (here,), rho).noise ** 2 == pytest.approx(w * dt, rel=1e-4)


@pytest.mark.parametrize("rho", [0.4, 1.0])
def test_churn_and_a_step_back_is_a_noisy_step(rho):
    """Noise up by the factor 1 + churn in sigma / alpha, then the ODE down from there, x0 known."""
    here, there = levels_of(Flow(), [-1.0, 0.0])
    h = there.log_ratio - here.log_ratio
    raised = levels_of(Flow(), [here.log_snr - 2 * math.log1p(churn_of_rho(rho, h))])[0]
    assert here.log_ratio - raised.log_ratio == pytest.approx(rho**2 * h, rel=1e-12)
    down = step_weights(raised, there, (raised,))
    whole = step_weights(here, there, (here,), rho)
    assert down.linear * raised.alpha / here.alpha == pytest.approx(whole.linear, rel=1e-12)
    added = raised.sigma**2 - (raised.alpha / here.alpha * here.sigma) ** 2
    assert down.linear * math.sqrt(added) == pytest.approx(whole.noise, rel=1e-12)


def test_rho_of_a_step():
    assert rho_of_step(0.3, 7) == 0.3
    assert rho_of_step([0.1, 0.2], 1) == 0.2
    assert rho_of_step("sde", 3) == 1
    assert rho_of_step(np.cos, 2) is np.cos
    with pytest.raises(InputError, match="lists 2 steps"):
        rho_of_step([0.1, 0.2], 2)


def test_presets():
    assert (PRESETS["ode"], PRESETS["sde"]) == (0, 1)
    assert PRESETS["bump"](np.array([-9, -3, -2.5, 0, 2, 4])).tolist() == [0, 0, 0.5, 1, 0.5, 0]
    for name in PRESETS:
        check_rho(name)


@pytest.mark.parametrize(
    ("rho", "noisy"),
    [(0.0, False), (0.1, True), ([0.0, 0.0], False), ([0.0, 0.2], True), ("ode", False), ("sde", True), (np.cos, True)],
)
def test_what_draws_noise(rho, noisy):
    check_rho(rho)
    assert is_noisy(rho) == noisy


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, [0.5, -1.0], (math.nan,)])
def test_impossible_multipliers_are_refused(rho):
    with pytest.raises(InputError, match="must be at least 0"):
        check_rho(rho)


def test_unknown_presets_are_refused():
    with pytest.raises(InputError, match=r"preset 'odd': use a number, a list or one of ode, sde, bump"):
        check_rho("odd")
