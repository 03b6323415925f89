"""DDIM, Euler, Heun with churn, and Adams-Bashforth in the angle, against diffusers and closed forms."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from logsnr.core.errors import InputError
from logsnr.core.types import Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.families import VE, Cosine, Flow, Trig, scaled_linear
from logsnr.schedules.grids import tangent, uniform_log_snr, uniform_time
from logsnr.schedules.scheduler_config import scheduler_grid
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plain import DDIM, Angle, Heun

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = scaled_linear()
MEAN, VARIANCE = 0.7, 0.09
GAUSSIAN = GaussianMixture(*(torch.tensor(values).double() for values in ([1.0], [[MEAN]], [[VARIANCE]])))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoiser(xt, level, cond=None):
    """Some network that reads x / alpha, or x itself where there is no data."""
    x0 = torch.tanh(2 * xt / math.hypot(level.alpha, level.sigma))
    return Prediction(x0, (xt - level.alpha * x0) / level.sigma)


def run(solver, x, grid, denoise=denoiser):
    memory = None
    for index, (here, there) in enumerate(pairwise(grid)):
        noise = normal(*x.shape, seed=index + 1) if solver.noisy else None
        x, memory = solver(denoise, x, here, there, noise, memory)
    return x


def exact(x, here, there):
    """The probability-flow ODE of Gaussian data: deviations grow with the standard deviation of the marginal."""
    spread = [math.sqrt(level.alpha**2 * VARIANCE + level.sigma**2) for level in (here, there)]
    return there.alpha * MEAN + spread[1] / spread[0] * (x - here.alpha * MEAN)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_is_diffusers_own(eta):
    scheduler = DDIMScheduler(**STABLE, prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    solver, x = DDIM(eta), normal(2, 3)
    y = x
    for index, (here, there) in enumerate(pairwise(scheduler_grid(scheduler, VP, 10))):
        noise = normal(2, 3, seed=index + 1)
        x, _ = solver(denoiser, x, here, there, noise, None)
        output = denoiser(y, here).x0
        y = scheduler.step(output, scheduler.timesteps[index], y, eta=eta, variance_noise=noise).prev_sample
    assert torch.allclose(x, y, rtol=0, atol=5e-6)


@pytest.mark.parametrize(("eta", "rho"), [(0.0, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("schedule", [Cosine(), Flow(), VP], ids=["cosine", "flow", "stable"])
def test_ddim_is_order_one_at_both_ends_of_eta(eta, rho, schedule):
    grid, x = uniform_time(schedule, 6), normal(4, 2)
    assert torch.allclose(run(DDIM(eta), x, grid), run(Exponential(1, rho), x, grid), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler])
@pytest.mark.parametrize("flags", [{}, {"use_karras_sigmas": True}], ids=["plain", "karras"])
def test_euler_and_heun_are_diffusers_own(kind, flags):
    scheduler = kind(**STABLE, **flags, prediction_type="epsilon")
    scheduler.set_timesteps(8)
    levels = scheduler_grid(scheduler, VP, 8)
    start = normal(2, 3)
    y = start / levels[0].alpha
    for t in scheduler.timesteps:
        at = scheduler.scale_model_input(y, t)
        sigma = float(scheduler.sigmas[scheduler.step_index])
        alpha = 1 / math.hypot(1, sigma)
        x0 = torch.tanh(2 * at)
        y = scheduler.step((at - alpha * x0) / (alpha * sigma), t, y).prev_sample
    found = run(Heun(euler=kind is EulerDiscreteScheduler), start, levels)
    assert torch.allclose(found, y.double(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_flow_euler_and_heun_are_diffusers_own(kind):
    scheduler = kind(shift=3.0)
    scheduler.set_timesteps(7)
    levels = scheduler_grid(scheduler, Flow(), 7)
    x = y = normal(2, 3)
    euler = kind is FlowMatchEulerDiscreteScheduler
    visited = levels[:-1] if euler else [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
    for t, level in zip(scheduler.timesteps, visited, strict=True):
        said = denoiser(y.double(), level)
        y = scheduler.step(said.eps - said.x0, t, y).prev_sample
    assert torch.allclose(run(Heun("flow", euler), x, levels), y.double(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("frame", ["ve", "flow"])
def test_heun_calls_twice_a_step_and_once_in_the_last(frame):
    calls = []

    def counted(xt, level, cond=None):
        calls.append(level)
        return denoiser(xt, level)

    grid = uniform_time(VP, 5)
    run(Heun(frame), normal(1), grid, counted)
    assert calls == [grid[0], *(level for level in grid[1:-1] for _ in range(2))]
    calls.clear()
    run(Heun(frame, euler=True), normal(1), grid, counted)
    assert calls == grid[:-1]


@pytest.mark.parametrize("frame", ["ve", "flow"])
def test_euler_is_order_one_in_any_frame(frame):
    """In the frame of x / alpha and in that of flow Euler is exact for constant x0 and eps, as DDIM is."""
    grid, x = uniform_log_snr(VP, 9), normal(4, 2)
    assert torch.allclose(run(Heun(frame, euler=True), x, grid), run(Exponential(1), x, grid), rtol=0, atol=1e-11)


PLAIN = {
    "ddim": DDIM(),
    "euler ve": Heun(euler=True),
    "euler flow": Heun("flow", euler=True),
    "heun ve": Heun(),
    "heun flow": Heun("flow"),
    "angle": Angle(),
    "angle of data 0.5": Angle(3, 0.5),
}


@pytest.mark.parametrize("solver", PLAIN.values(), ids=PLAIN.keys())
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), Trig()], ids=["flow", "cosine", "trig"])
def test_plain_solvers_go_from_pure_noise_to_data(solver, schedule):
    x, grid = normal(5, 1), tangent(schedule, 200, data_std=0.3)
    found = run(solver, x, grid, GAUSSIAN)
    assert torch.allclose(found, exact(x, grid[0], grid[-1]), rtol=0, atol=0.02)


def test_the_angle_form_needs_no_care_at_the_ends():
    """dz / dangle = -F is linear here: with data_std that of centred Gaussian data F = 0, and one step is exact."""
    centred = GaussianMixture(*(torch.tensor(values).double() for values in ([1.0], [[0.0]], [[0.25]])))
    x, grid = normal(5, 1), uniform_time(Flow(), 1)
    assert torch.allclose(run(Angle(1, 0.5), x, grid, centred), 0.5 * x, rtol=0, atol=1e-15)


def test_the_angle_form_keeps_its_order_at_the_data():
    x = normal(5, 1)
    errors = []
    for steps in (40, 80):
        grid = tangent(Flow(), steps)
        errors.append(float((run(Angle(), x, grid, GAUSSIAN) - exact(x, grid[0], grid[-1])).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.parametrize("schedule", [VE(0.001, 50), VP], ids=["ve", "stable"])
@pytest.mark.parametrize("churn", [0.02, 0.2])
def test_churn_keeps_the_marginal(schedule, churn):
    """The denoiser is asked at levels of its own schedule, and data of known law come out."""
    grid = uniform_log_snr(schedule, 60)
    visited = []

    def seen(xt, level, cond=None):
        visited.append(level)
        return GAUSSIAN(xt, level)

    start = grid[0]
    x = start.alpha * MEAN + math.hypot(start.alpha * VARIANCE**0.5, start.sigma) * normal(20_000, 1)
    found = run(Heun(churn=churn, schedule=schedule, churn_max=5.0), x, grid, seen)
    assert float(found.mean()) == pytest.approx(MEAN, abs=4 * 0.3 / 20_000**0.5)
    assert float(found.var()) == pytest.approx(VARIANCE, rel=0.05)
    for level in visited:
        expected = schedule.level(min(level.t, 1.0))
        assert (level.alpha, level.sigma) == pytest.approx((expected.alpha, expected.sigma), rel=1e-6)


def test_churn_acts_in_its_window_alone():
    grid = uniform_log_snr(VP, 8)
    options = {"churn": 0.3, "schedule": VP}
    x = normal(3)
    assert torch.equal(run(Heun(**options, churn_max=1e-9), x, grid), run(Heun(), x, grid))
    assert torch.equal(run(Heun(**options, churn_min=1e9), x, grid), run(Heun(), x, grid))
    assert not torch.equal(run(Heun(**options), x, grid), run(Heun(), x, grid))


def test_churn_without_noise_is_refused():
    here, there = VP.level(0.5), VP.level(0.4)
    with pytest.raises(InputError, match="churn needs noise"):
        Heun(churn=0.1, schedule=VP)(denoiser, normal(1), here, there, None, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(1.1), "eta is 1.1"),
        (lambda: DDIM(-0.1), "eta is -0.1"),
        (lambda: Heun(churn=-1.0), "churn is -1"),
        (lambda: Heun("flow", churn=0.1), "belongs to the frame ve"),
        (lambda: Heun(churn=0.1), "pass the schedule"),
        (lambda: Angle(0), "order is 0"),
        (lambda: Angle(5), "order is 5"),
    ],
)
def test_impossible_solvers_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
