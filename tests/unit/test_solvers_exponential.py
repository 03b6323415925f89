"""The exponential integrators against formulas, quadrature and diffusers, and on a Gaussian whose answer is known."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.families import Flow, scaled_linear
from logsnr.schedules.grids import scheduler_grid, uniform_time
from logsnr.solvers.exponential import Exponential, step_weights

RHOS = (0.0, 0.5, 1.0)
LOGS = st.floats(-6, 6)
STEPS = st.floats(1e-3, 8)
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def level(log_ratio, scale=1.0):
    """A level with the given log(alpha / sigma); ``scale`` leaves the unit circle."""
    return Level(0.5, scale / math.sqrt(1 + math.exp(-2 * log_ratio)), scale / math.sqrt(1 + math.exp(2 * log_ratio)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2])
@given(start=LOGS, step=STEPS)
def test_the_first_step_is_ddim(order, start, step):
    here, there = level(start), level(start + step)
    found = step_weights(Exponential(order), here, there, None)
    linear = there.sigma / here.sigma
    assert (found.linear, found.current) == pytest.approx((linear, there.alpha - linear * here.alpha), rel=1e-9)
    assert (found.previous, found.noise) == (0, 0)


@given(start=LOGS, step=STEPS, rho=st.floats(0.1, 2))
def test_order_one_with_noise_is_ddim_with_eta(start, step, rho):
    """DDIM puts noise of deviation s back and keeps sqrt(sigma^2 - s^2) of the estimated one."""
    here, there = level(start), level(start + step)
    found = step_weights(Exponential(1, rho), here, there, level(start - 1))
    kept = math.sqrt(there.sigma**2 - found.noise**2)
    assert found.noise**2 == pytest.approx(there.sigma**2 * -math.expm1(-2 * rho**2 * step), rel=1e-9)
    assert found.linear == pytest.approx(kept / here.sigma, rel=1e-5, abs=1e-9)
    assert found.current == pytest.approx(there.alpha - here.alpha * found.linear, rel=1e-9, abs=1e-12)
    assert found.previous == 0


@pytest.mark.parametrize("variant", ["heun", "midpoint"])
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("step", [1e-6, 1e-3, 9.9e-3, 1.01e-2, 0.1, 1.0, 5.0, 30.0])
def test_constants_and_lines_are_integrated(variant, rho, step):
    """dy / dl = (1 + rho^2)(x0 - y), so y gains the integral of (1 + rho^2) e^{-(1 + rho^2)(step - u)} x0(u) du."""
    here, there, before = level(-0.4, 1.3), level(-0.4 + step, 0.9), level(-0.4 - 0.7 * step)
    found = step_weights(Exponential(2, rho, variant), here, there, before)
    rate, step = 1 + rho**2, there.log_ratio - here.log_ratio
    constant, line = (
        integrate.quad(
            lambda u, m=m: rate * math.exp(-rate * (step - u)) * u**m,
            0,
            step,
            epsabs=0,
            epsrel=1e-12,
            points=[max(0.0, step - 3)],
        )[0]
        for m in (0, 1)
    )
    assert found.linear == pytest.approx(there.alpha / here.alpha * math.exp(-rate * step), rel=1e-11, abs=0)
    assert found.current + found.previous == pytest.approx(there.alpha * constant, rel=1e-11, abs=0)
    slope = -found.previous * (here.log_ratio - before.log_ratio) / there.alpha
    assert slope == pytest.approx(line if variant == "heun" else constant * step / 2, rel=1e-11, abs=0)


@given(start=LOGS, step=STEPS, before=st.floats(0.01, 3), rho=st.sampled_from(RHOS))
def test_midpoint_is_dpm_solver_2m(start, step, before, rho):
    """(2211.01095, algorithm 2), for the SDE with 2h in place of h where rho = 1."""
    here, there = level(start), level(start + step)
    found = step_weights(Exponential(2, rho, "midpoint"), here, there, level(start - before))
    share = step / (2 * before)
    gain = there.alpha * -math.expm1(-(1 + rho**2) * step)
    assert found.current == pytest.approx(gain * (1 + share), rel=1e-6)
    assert found.previous == pytest.approx(-gain * share, rel=1e-6)


@pytest.mark.parametrize("rho", [0, 1])
@pytest.mark.parametrize("order", [1, 2])
def test_whole_trajectories_are_diffusers_dpm_solver(order, rho):
    steps, kind = 16, "sde-dpmsolver++" if rho else "dpmsolver++"
    scheduler = DPMSolverMultistepScheduler(
        **STABLE,
        prediction_type="sample",
        algorithm_type=kind,
        solver_order=order,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    x = y = normal(3, 1, 4, 4)
    memory, solver = None, Exponential(order, rho, "midpoint")
    levels = scheduler_grid(scaled_linear(), scheduler.config, steps)
    for index, (here, there) in enumerate(pairwise(levels)):
        noise = normal(3, 1, 4, 4, seed=index + 1)
        x, memory = solver(lambda xt, _level: Prediction(torch.tanh(2 * xt), xt), x, here, there, noise, memory)
        y = scheduler.step(torch.tanh(2 * y), scheduler.timesteps[index], y, variance_noise=noise).prev_sample
        assert torch.allclose(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("rho", [0, 1])
def test_a_step_is_diffusers_ddim_step(rho):
    scheduler = DDIMScheduler(**STABLE, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(10)
    here, there = (scaled_linear().level((k + 1) / 1000) for k in (500, 400))
    x, x0, noise = (normal(2, 1, 4, 4, seed=seed) for seed in range(3))
    expected = scheduler.step(x0, 500, x, eta=float(rho), variance_noise=noise).prev_sample
    found = Exponential(1, rho).advance(x, x0, here, there, noise, None)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("variant", ["heun", "midpoint"])
def test_the_ends_are_finite_and_exact(order, rho, variant):
    solver, noise = Exponential(order, rho, variant), Flow().level(1)
    middle, data = Flow().level(0.4), Flow().level(0)
    first = step_weights(solver, noise, middle, None)
    assert first.linear == (0 if rho else pytest.approx(0.4, abs=1e-15))
    assert (first.current, first.previous) == (middle.alpha, 0)
    assert first.noise == (middle.sigma if rho else 0)
    second = step_weights(solver, middle, Flow().level(0.2), noise)
    assert second == step_weights(solver, middle, Flow().level(0.2), None)
    for before in (None, Flow().level(0.6), noise):
        last = step_weights(solver, middle, data, before)
        assert (last.linear, last.current, last.previous, last.noise) == (0, 1, 0, 0)
    whole = step_weights(solver, noise, data, None)
    assert (whole.linear, whole.current, whole.previous, whole.noise) == (0, 1, 0, 0)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("order", [1, 2])
def test_a_trajectory_from_pure_noise_to_data_lands_on_x0(order, rho):
    x, target, memory, solver = normal(4, 3), normal(4, 3, seed=9), None, Exponential(order, rho)
    for index, (here, there) in enumerate(pairwise(uniform_time(Flow(), 5))):
        noise = normal(4, 3, seed=index + 20)
        x, memory = solver(lambda xt, _level: Prediction(target, xt), x, here, there, noise, memory)
        assert bool(x.isfinite().all())
    assert torch.equal(x, target)


def test_a_step_is_a_pure_function_of_its_arguments():
    calls = []

    def denoiser(xt, here):
        calls.append(here)
        return Prediction(xt.sin(), xt)

    solver, (before, here, there) = Exponential(2), (level(log) for log in (-1, 0, 1))
    x, x0_before = normal(2, 3), normal(2, 3, seed=1)
    kept = x.clone()
    first, memory = solver(denoiser, x, here, there, None, (before, x0_before))
    solver(denoiser, x * 2, before, here, None, None)
    again, _ = solver(denoiser, x, here, there, None, (before, x0_before))
    assert torch.equal(first, again)
    assert torch.equal(x, kept)
    assert memory[0] == here
    assert torch.equal(memory[1], x.sin())
    assert calls == [here, before, here]
    assert not torch.equal(first, solver(denoiser, x, here, there, None, None)[0])


def test_a_stochastic_step_needs_noise():
    with pytest.raises(InputError, match="rho > 0 needs noise"):
        Exponential(1, 0.5).advance(normal(2), normal(2), level(0), level(1), None, None)


@pytest.mark.parametrize("there", [0.0, -1.0])
def test_a_step_that_does_not_clean_is_refused(there):
    with pytest.raises(InputError, match="less noise"):
        step_weights(Exponential(), level(0), level(there), None)


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 3}, {"rho": -0.1}, {"rho": math.inf}, {"rho": math.nan}])
def test_impossible_solvers_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Exponential(**options)


MEAN, VARIANCE = 0.7, 0.09


def gaussian_marginal(order, rho, steps):
    """Mean and variance at the end for data N(MEAN, VARIANCE), by the exact recursion of (x, last x0); no samples."""
    grid = [level(-3.5 + 8 * i / steps) for i in range(steps + 1)]
    mean = torch.tensor([grid[0].alpha * MEAN, 0.0], dtype=torch.float64)
    covariance = torch.diag(
        torch.tensor([grid[0].alpha ** 2 * VARIANCE + grid[0].sigma ** 2, 0.0], dtype=torch.float64)
    )
    for index, (here, there) in enumerate(pairwise(grid)):
        weights = step_weights(Exponential(order, rho), here, there, grid[index - 1] if index else None)
        gain = here.alpha * VARIANCE / (here.alpha**2 * VARIANCE + here.sigma**2)
        offset = MEAN * (1 - gain * here.alpha)
        matrix = torch.tensor(
            [[weights.linear + weights.current * gain, weights.previous], [gain, 0]], dtype=torch.float64
        )
        mean = matrix @ mean + offset * torch.tensor([weights.current, 1.0], dtype=torch.float64)
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += weights.noise**2
    return float(mean[0]), float(covariance[0, 0])


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.9, 1.1), (2, 1.9, 2.1)])
def test_every_rho_keeps_the_marginal_of_a_gaussian(order, rho, low, high):
    end = level(4.5)
    mean, variance = end.alpha * MEAN, end.alpha**2 * VARIANCE + end.sigma**2
    found = [gaussian_marginal(order, rho, steps) for steps in (400, 800)]
    assert [pair[0] for pair in found] == pytest.approx([mean, mean], rel=1e-12)
    errors = [abs(pair[1] / variance - 1) for pair in found]
    assert errors[1] < (0.01 if order == 1 else 1e-4)
    assert low <= math.log2(errors[0] / errors[1]) <= high
