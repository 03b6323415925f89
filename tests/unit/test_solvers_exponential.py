"""The exponential integrators and their weights against formulas, quadrature and diffusers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.curve import Curve
from logsnr.schedules.families import Flow, scaled_linear
from logsnr.schedules.grids import uniform_time
from logsnr.schedules.scheduler_config import scheduler_grid
from logsnr.solvers.backward import PRESETS
from logsnr.solvers.exponential import Exponential, Memory, check_coarse
from logsnr.solvers.weights import inverse_weights, polynomial_weights, step_weights

ORDERS = (1, 2, 3, 4)
RHOS = (0.0, 0.5, 1.0)
LOGS = st.floats(-6, 6)
STEPS = st.floats(1e-3, 8)
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def level(log_ratio, scale=1.0):
    """A level with the given log(alpha / sigma); ``scale`` leaves the unit circle."""
    return Level(0.5, scale / math.sqrt(1 + math.exp(-2 * log_ratio)), scale / math.sqrt(1 + math.exp(2 * log_ratio)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(start=LOGS, step=STEPS)
def test_the_first_step_is_ddim(start, step):
    here, there = level(start), level(start + step)
    found = step_weights(here, there, (here,))
    linear = there.sigma / here.sigma
    assert (found.linear, *found.values) == pytest.approx((linear, there.alpha - linear * here.alpha), rel=1e-9)
    assert found.noise == 0


@given(start=LOGS, step=STEPS, rho=st.floats(0.1, 2))
def test_order_one_with_noise_is_ddim_with_eta(start, step, rho):
    """DDIM puts noise of deviation s back and keeps sqrt(sigma^2 - s^2) of the estimated one."""
    here, there = level(start), level(start + step)
    found = step_weights(here, there, (here,), rho)
    assert found.noise**2 == pytest.approx(there.sigma**2 * -math.expm1(-2 * rho**2 * step), rel=1e-9)
    assert found.noise**2 + (found.linear * here.sigma) ** 2 == pytest.approx(there.sigma**2, rel=1e-9)
    assert found.linear == pytest.approx(there.sigma / here.sigma * math.exp(-(rho**2) * step), rel=1e-9)
    assert found.values[0] == pytest.approx(there.alpha - here.alpha * found.linear, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("step", [1e-6, 1e-3, 9.9e-3, 1.01e-2, 0.1, 1.0, 5.0, 30.0, 100.0])
def test_polynomials_are_integrated(order, rho, step):
    """dy / dl = (1 + rho^2)(x0 - y), so y gains the integral of (1 + rho^2) e^{-(1 + rho^2)(step - u)} x0(u) du."""
    here, there = level(-0.4, 1.3), level(-0.4 + step, 0.9)
    nodes = (here, *(level(-0.4 - shift * step) for shift in (0.7, 1.9, 2.8)))[:order]
    found = step_weights(here, there, nodes, rho)
    rate, step = 1 + rho**2, there.log_ratio - here.log_ratio
    assert found.linear == pytest.approx(there.alpha / here.alpha * math.exp(-rate * step), rel=1e-11, abs=0)
    for power in range(order):
        moment = integrate.quad(
            lambda u, power=power: rate * math.exp(-rate * (step - u)) * (u / step) ** power,
            max(0.0, step - 40),
            step,
            epsabs=0,
            epsrel=1e-12,
            limit=200,
        )[0]
        places = [(node.log_ratio - here.log_ratio) / step for node in nodes]
        gained = sum(value * place**power for value, place in zip(found.values, places, strict=True))
        assert gained == pytest.approx(there.alpha * moment, rel=1e-9, abs=0)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("step", [0.1, 1.0, 5.0])
def test_the_moments_follow_their_recursion(rho, step):
    """I_0 = 1 - e^{-H}, I_m = 1 - (m / H) I_{m-1}, H = (1 + rho^2) h."""
    here, there = level(0.3), level(0.3 + step)
    places, whole = (0, -0.5, -1.3, -2), (1 + rho**2) * step
    values = step_weights(here, there, tuple(level(0.3 + place * step) for place in places), rho).values
    moment = -math.expm1(-whole)
    for power in range(4):
        moment = 1 - power / whole * moment if power else moment
        gained = sum(value * place**power for value, place in zip(values, places, strict=True)) / there.alpha
        assert gained == pytest.approx(moment, rel=1e-9)


@given(start=LOGS, step=STEPS, before=st.floats(0.01, 3), rho=st.sampled_from(RHOS))
def test_order_two_is_dpm_solver_2m(start, step, before, rho):
    """(2211.01095, algorithm 2), for the SDE with 2h in place of h where rho = 1; "heun" has the exact first moment."""
    here, there, nodes = level(start), level(start + step), (level(start), level(start - before))
    whole = (1 + rho**2) * step
    gain = -math.expm1(-whole)
    exact = 1 + math.expm1(-whole) / whole
    for midpoint, slope in ((True, gain / 2), (False, exact)):
        found = step_weights(here, there, nodes, rho, 0.0, midpoint)
        share = slope * step / before
        expected = (there.alpha * (gain + share), -there.alpha * share)
        assert found.values == pytest.approx(expected, rel=1e-6)


def smooth(log_ratio):
    return 0.6 + 0.5 * np.sin(1.3 * np.asarray(log_ratio))


def shrinking(log_ratio):
    return 1 / (1 + np.exp(-2 * np.asarray(log_ratio)))


@pytest.mark.parametrize("rho", [smooth, PRESETS["bump"], 0.7], ids=["smooth", "bump", "number"])
@pytest.mark.parametrize("linear", [shrinking, Curve((-2.0, 0.0, 1.0), (0.1, 0.8, 0.9)), 0.0, 1.0])
@pytest.mark.parametrize(("start", "step"), [(-2.3, 0.9), (0.4, 0.05), (-3.5, 7.0)])
def test_varying_rates_are_integrated(rho, linear, start, step):
    """The polynomial is one of x0 less its linear part, or, where all of it is linear, of e^u times that: of eps."""
    tilt = float(linear == 1.0)
    here, there = level(start), level(start + step)
    nodes = (here, level(start - 0.5 * step))
    found = step_weights(here, there, nodes, rho, linear)

    def at(rate, log_ratio):
        return float(rate(log_ratio)) if callable(rate) else rate

    def backwards(u, state):
        """Decay, two moments and variance, gathered from the end of the step to its start."""
        squared, decay = at(rho, start + u) ** 2, state[0]
        gain = (1 + squared) * math.exp(-decay - tilt * u)
        kept = 2 * squared * math.exp(2 * (step - u) - 2 * decay)
        return [-(1 + squared) * (1 - at(linear, start + u)), -gain, -gain * u, -kept]

    state = [0.0] * 4
    corners = sorted({0.0, step, *(p - start for p in (-3, -2, 0, 1, 3) if 0 < p - start < step)}, reverse=True)
    for high, low in pairwise(corners):
        state = integrate.solve_ivp(backwards, (high, low), state, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
    decay, constant, line, variance = state
    assert found.linear == pytest.approx(there.alpha / here.alpha * math.exp(-decay), rel=1e-9)
    newest, oldest = found.values[0], found.values[1] * math.exp(tilt * 0.5 * step)
    assert newest + oldest == pytest.approx(there.alpha * constant, rel=1e-9)
    assert -oldest * 0.5 * step == pytest.approx(there.alpha * line, rel=1e-9)
    assert found.noise == pytest.approx(there.sigma * math.sqrt(max(variance, 0)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("rho", [smooth, PRESETS["bump"], 0.3, 2.0, 10.0, 100.0])
@pytest.mark.parametrize(("start", "step"), [(-2.3, 0.5), (-3.5, 8.0), (0.9, 0.2)])
def test_every_step_keeps_data_and_the_variance_of_noise(rho, start, step):
    """Known x0 stays where it is, and the noise around it gets the variance of the level."""
    here, there = level(start), level(start + step)
    found = step_weights(here, there, (here,), rho)
    assert found.linear * here.alpha + found.values[0] == pytest.approx(there.alpha, rel=1e-11)
    assert (found.linear * here.sigma) ** 2 + found.noise**2 == pytest.approx(there.sigma**2, rel=1e-10)


def of_noise(found, nodes):
    """The weights of eps, which is -e^l (x0 - y)."""
    return [-value * math.exp(-node.log_ratio) for value, node in zip(found.values, nodes, strict=True)]


@given(start=LOGS, step=STEPS, before=st.floats(0.01, 3), rho=st.sampled_from(RHOS))
def test_the_noise_form_is_dpm_solver(start, step, before, rho):
    """(2206.00927): eps constant or a line in l, times e^{h - u}; midpoint and heun are diffusers' names."""
    here, there, back = level(start), level(start + step), level(start - before)
    rate, grown = 1 + rho**2, math.expm1(step)
    first = step_weights(here, there, (here,), rho, 1.0)
    assert first.linear == pytest.approx(there.alpha / here.alpha, rel=1e-12)
    assert first.noise == pytest.approx(there.sigma * rho * math.sqrt(math.expm1(2 * step)), rel=1e-9)
    assert of_noise(first, (here,)) == pytest.approx([-rate * there.sigma * grown], rel=1e-9)
    for midpoint, slope in ((True, grown * step / 2), (False, grown - step)):
        found = step_weights(here, there, (here, back), rho, 1.0, midpoint)
        share = slope / before
        expected = [-rate * there.sigma * (grown + share), rate * there.sigma * share]
        assert of_noise(found, (here, back)) == pytest.approx(expected, rel=1e-6)
        assert (found.linear, found.noise) == (first.linear, first.noise)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rho", RHOS)
def test_the_noise_form_integrates_polynomials_of_eps(order, rho):
    here, there = level(-0.4), level(0.8)
    nodes = (here, level(-1.1), level(-2.0), level(-2.6))[:order]
    found = of_noise(step_weights(here, there, nodes, rho, 1.0), nodes)
    for power in range(order):
        moment = integrate.quad(lambda u, power=power: math.exp(1.2 - u) * u**power, 0, 1.2, epsrel=1e-12)[0]
        gained = sum(value * (node.log_ratio + 0.4) ** power for value, node in zip(found, nodes, strict=True))
        assert gained == pytest.approx(-(1 + rho**2) * there.sigma * moment, rel=1e-9)


@given(start=LOGS, step=st.floats(0.01, 4))
def test_a_step_towards_noise_undoes_one_towards_data(start, step):
    here, there = level(start), level(start + step)
    down, up = step_weights(here, there, (here,)), inverse_weights(there, here, (there,))
    assert up.linear * down.linear == pytest.approx(1, rel=1e-9)
    assert up.linear * down.values[0] + up.values[0] == pytest.approx(0, abs=1e-8)
    assert up.noise == 0


def test_polynomial_weights_are_adams_and_bashforths():
    assert polynomial_weights([0.0], 0.3) == pytest.approx([0.3])
    assert polynomial_weights([1, 0, -1, -2], 2) == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24])
    assert polynomial_weights([0, 0.5], -1) == pytest.approx([-2, 1])


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
    levels = scheduler_grid(scheduler, scaled_linear(), steps)
    for index, (here, there) in enumerate(pairwise(levels)):
        noise = normal(3, 1, 4, 4, seed=index + 1)
        x, memory = solver(lambda xt, _level: Prediction(torch.tanh(2 * xt), xt), x, here, there, noise, memory)
        y = scheduler.step(torch.tanh(2 * y), scheduler.timesteps[index], y, variance_noise=noise).prev_sample
        assert torch.allclose(x, y, rtol=0, atol=2e-5)


SDE = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
ODE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
NOISE_FORMS = {
    "dpmsolver 1": (DPMSolverMultistepScheduler, ODE, (1,)),
    "dpmsolver 2": (DPMSolverMultistepScheduler, ODE, (2, 0, "midpoint")),
    "dpmsolver 2 heun": (DPMSolverMultistepScheduler, {**ODE, "solver_type": "heun"}, (2,)),
    "sde-dpmsolver 1": (DPMSolverMultistepScheduler, SDE, (1, 1)),
    "sde-dpmsolver 2": (DPMSolverMultistepScheduler, SDE, (2, 1, "midpoint")),
    "sde-dpmsolver 2 heun": (DPMSolverMultistepScheduler, {**SDE, "solver_type": "heun"}, (2, 1)),
    "deis 1": (DEISMultistepScheduler, {}, (1,)),
    "deis 2": (DEISMultistepScheduler, {}, (2,)),
    "deis 3": (DEISMultistepScheduler, {}, (3,)),
}


@pytest.mark.parametrize(("kind", "settings", "arguments"), NOISE_FORMS.values(), ids=NOISE_FORMS.keys())
def test_whole_trajectories_in_noise_are_diffusers(kind, settings, arguments):
    """DPM-Solver and DEIS to their last noisy level; both weigh their evaluations by formulas of their own."""
    shared = {**STABLE, "lower_order_final": False, "timestep_spacing": "trailing", "solver_order": arguments[0]}
    scheduler = kind(**shared, **settings)
    scheduler.set_timesteps(16)
    levels = [level(-math.log(sigma)) for sigma in scheduler.sigmas[:-1].tolist()]
    x = y = normal(3, 1, 4, 4)
    memory, solver = None, Exponential(*arguments, linear="eps")
    for index, (here, there) in enumerate(pairwise(levels)):
        noise, x0 = normal(3, 1, 4, 4, seed=index + 1), (x - here.sigma * torch.tanh(x)) / here.alpha
        x, memory = solver.advance(x, x0, here, there, noise, memory)
        given = {"variance_noise": noise} if solver.noisy else {}
        y = scheduler.step(torch.tanh(y), scheduler.timesteps[index], y, **given).prev_sample
        assert (x - y).abs().max() <= 2e-6 * y.abs().max()


@pytest.mark.parametrize("rho", [0, 1])
def test_a_step_is_diffusers_ddim_step(rho):
    scheduler = DDIMScheduler(**STABLE, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(10)
    here, there = (scaled_linear().level((k + 1) / 1000) for k in (500, 400))
    x, x0, noise = (normal(2, 1, 4, 4, seed=seed) for seed in range(3))
    expected = scheduler.step(x0, 500, x, eta=float(rho), variance_noise=noise).prev_sample
    found, _ = Exponential(1, rho).advance(x, x0, here, there, noise, None)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rho", [*RHOS, PRESETS["bump"]])
@pytest.mark.parametrize("linear", [0.0, 1.0, shrinking])
def test_the_ends_are_finite_and_exact(rho, linear):
    noise, middle, data = (Flow().level(t) for t in (1, 0.4, 0))
    noisy = callable(rho) or rho > 0
    first = step_weights(noise, middle, (noise,), rho, linear)
    assert first.linear == (0 if noisy else pytest.approx(0.4, abs=1e-15))
    assert first.values == (middle.alpha,)
    assert first.noise == (middle.sigma if noisy else 0)
    for nodes in ((middle,), (middle, Flow().level(0.6)), (noise,)):
        last = step_weights(nodes[0], data, nodes, rho, linear)
        assert (last.linear, last.values[0], sum(last.values), last.noise) == (0, 1, 1, 0)


JACOBIAN = Curve((-3.0, 3.0), (0.1, 0.9))
SOLVERS = {
    **{f"order {order} rho {rho:g}": Exponential(order, rho) for order in ORDERS for rho in RHOS},
    "midpoint": Exponential(2, variant="midpoint"),
    "corrector": Exponential(3, 0.5, corrector=True),
    "eps": Exponential(3, linear="eps"),
    "eps with noise": Exponential(2, 1.0, "midpoint", corrector=True, linear="eps"),
    "F": Exponential(3, linear="F", data_std=0.5, corrector=True),
    "curve": Exponential(2, 0.5, linear=JACOBIAN),
    "list": Exponential(2, [0.0, 1.0, 0.5, 0.2, 0.0]),
    "bump": Exponential(2, "bump"),
}


def run(solver, denoiser, x, grid):
    memory = None
    for index, (here, there) in enumerate(pairwise(grid)):
        noise = normal(*x.shape, seed=index + 20) if solver.noisy and there.sigma else None
        x, memory = solver(denoiser, x, here, there, noise, memory)
    return x


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
def test_a_trajectory_from_pure_noise_to_data_lands_on_x0(solver):
    target = normal(4, 3, seed=9)
    found = run(solver, lambda xt, _: Prediction(target, xt), normal(4, 3), uniform_time(Flow(), 5))
    assert torch.equal(found, target)


def test_infinite_noise_never_enters_the_history():
    noise, middle = Flow().level(1), Flow().level(0.6)
    _, memory = Exponential(3, corrector=True)(lambda xt, _: Prediction(xt, xt), normal(2), noise, middle, None, None)
    assert memory == Memory(1, (), None)


@pytest.mark.parametrize("corrector", [False, True])
def test_a_step_is_a_pure_function_of_its_arguments(corrector):
    calls = []

    def denoiser(xt, here):
        calls.append(here)
        return Prediction(xt.sin(), xt)

    solver, (before, here, there) = Exponential(2, corrector=corrector), (level(log) for log in (-1, 0, 1))
    x = normal(2, 3)
    kept = x.clone()
    moved, memory = solver(denoiser, x, before, here, None, None)
    first, after = solver(denoiser, moved, here, there, None, memory)
    solver(denoiser, x * 2, before, here, None, None)
    again, _ = solver(denoiser, moved, here, there, None, memory)
    assert torch.equal(first, again)
    assert torch.equal(x, kept)
    assert [known[0] for known in after.history] == [here, before]
    assert torch.equal(after.history[0][1], moved.sin())
    assert (memory.step, after.step) == (1, 2)
    assert calls == [before, here, before, here]
    assert not torch.equal(first, solver(denoiser, moved, here, there, None, None)[0])


def test_the_corrector_redoes_the_step_with_the_new_evaluation():
    before, here, there = (level(log) for log in (-1, 0, 0.8))
    x, solver, noise = normal(2, 3), Exponential(1, [0.5, 0.9], corrector=True), normal(2, 3, seed=5)
    moved, memory = solver.advance(x, x.sin(), before, here, noise, None)
    found, _ = solver.advance(moved, moved.sin(), here, there, noise, memory)
    again = step_weights(before, here, (here, before), 0.5)
    corrected = again.linear * x + again.values[0] * moved.sin() + again.values[1] * x.sin() + again.noise * noise
    expected, _ = Exponential(1, 0.9).advance(corrected, moved.sin(), here, there, noise, None)
    assert torch.allclose(found, expected, rtol=0, atol=1e-14)


def test_rho_may_change_from_step_to_step():
    grid = [level(log) for log in (-1.0, 0.0, 1.0, 2.0)]
    listed, memory = Exponential(1, [0.0, 1.0, 0.5]), None
    x = y = normal(2, 3)
    for index, (here, there) in enumerate(pairwise(grid)):
        noise = normal(2, 3, seed=index)
        x, memory = listed.advance(x, x.sin(), here, there, noise, memory)
        y, _ = Exponential(1, (0.0, 1.0, 0.5)[index]).advance(y, y.sin(), here, there, noise, None)
    assert torch.equal(x, y)
    with pytest.raises(InputError, match="rho lists 3 steps"):
        listed.advance(x, x, grid[0], grid[1], x, memory)


def test_a_stochastic_step_needs_noise():
    with pytest.raises(InputError, match="rho > 0 needs noise"):
        Exponential(1, 0.5).advance(normal(2), normal(2), level(0), level(1), None, None)


@pytest.mark.parametrize("there", [0.0, -1.0])
def test_a_step_that_does_not_clean_is_refused(there):
    with pytest.raises(InputError, match="less noise"):
        step_weights(level(0), level(there), (level(0),))


@pytest.mark.parametrize("grid", ["karras", "log-snr"])
@pytest.mark.parametrize(
    ("order", "linear", "what"), [(3, "x0", "order 3"), (4, "eps", "order 4"), (2, JACOBIAN, "a curve as linear part")]
)
def test_coarse_grids_are_warned_of(grid, order, linear, what):
    with pytest.warns(UserWarning, match=f"{what} on the grid {grid} .* 9 evaluations .* use order 2") as caught:
        check_coarse(order, linear, grid, 9)
    assert len(caught) == 1


def test_the_early_grid_suits_order_3_from_8_evaluations_on():
    with pytest.warns(UserWarning, match="7 evaluations .* or 8 evaluations and more"):
        check_coarse(3, "x0", "log-snr-early", 7)


@pytest.mark.parametrize(
    ("order", "linear", "grid", "steps"),
    [
        (2, "x0", "karras", 5),
        (1, "F", "log-snr", 5),
        (3, "x0", "karras", 10),
        (4, JACOBIAN, "tangent", 5),
        (3, "x0", "log-snr-early", 8),
    ],
)
def test_what_suits_few_steps_is_not_warned_of(recwarn, order, linear, grid, steps):
    check_coarse(order, linear, grid, steps)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"order": 0}, "order"),
        ({"order": 5}, "order"),
        ({"rho": -0.1}, "rho"),
        ({"rho": math.inf}, "rho"),
        ({"rho": math.nan}, "rho"),
        ({"rho": [0.5, -1.0]}, "rho"),
        ({"rho": "odd"}, "preset 'odd'"),
        ({"order": 2, "mmse": Curve((0.0,), (1.0,))}, "order 1"),
        ({"order": 1, "mmse": Curve((0.0,), (1.0,)), "corrector": True}, "order 1"),
    ],
)
def test_impossible_solvers_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        Exponential(**options)
