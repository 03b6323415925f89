"""Orders of convergence as a table: slopes of the error over halvings of the step, on problems with known answers.

Of the deterministic solvers the problem is a 1-D mixture of three Gaussians with its exact denoiser, and the reference
is scipy's DOP853; of the stochastic ones it is one Gaussian, whose moments follow an exact recursion.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from logsnr.core.types import Level
from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.curve import curve
from logsnr.solvers.exponential import Exponential, Memory
from logsnr.solvers.plain import DDIM, Angle, Heun
from logsnr.solvers.weights import step_weights

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64),
    torch.tensor([[0.04], [0.01], [0.09]], dtype=torch.float64),
)
FIRST, LAST = -3.5, 4.5
STARTS = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
STD = MIXTURE.std


def level(log_ratio):
    return Level(0.5, 1 / math.sqrt(1 + math.exp(-2 * log_ratio)), 1 / math.sqrt(1 + math.exp(2 * log_ratio)))


def mean_jacobian():
    """mmse / s^2, by quadrature over the noisy density."""
    points = np.linspace(-4, 5, 400)
    z = torch.linspace(-6, 6, 2001, dtype=torch.float64)[:, None]
    second = STD**2 + MIXTURE.mean.item() ** 2
    found = []
    for point in points:
        here = level(point)
        explained = (MIXTURE.log_prob(z, here).exp() * MIXTURE(z, here).x0[:, 0].square()).sum() * 12 / 2000
        found.append(min(1.0, max(0.0, (second - float(explained)) * math.exp(2 * point))))
    return curve(points.tolist(), found)


JACOBIAN = mean_jacobian()
# solver, lowest slope in the halvings from 80 to 640 steps, lowest and highest in the last
TABLE = {
    "order 1": (Exponential(1), 0.9, 0.9, 1.1),
    "order 2 heun": (Exponential(2), 1.9, 1.9, 2.1),
    "order 2 midpoint": (Exponential(2, variant="midpoint"), 1.9, 1.9, 2.1),
    "order 3": (Exponential(3), 2.8, 2.8, 3.3),
    "order 1 corrected": (Exponential(1, corrector=True), 1.9, 1.9, 2.1),
    "order 2 corrected": (Exponential(2, corrector=True), 1.8, 1.8, 2.2),
    "order 3 corrected": (Exponential(3, corrector=True), 2.4, 2.8, 3.5),
    "order 1 F": (Exponential(1, linear="F", data_std=STD), 0.9, 0.9, 1.1),
    "order 2 F": (Exponential(2, linear="F", data_std=STD), 1.9, 1.9, 2.1),
    "order 3 F": (Exponential(3, linear="F", data_std=STD), 2.8, 2.8, 3.3),
    "order 1 Jacobian": (Exponential(1, linear=JACOBIAN), 0.9, 0.9, 1.1),
    "order 2 Jacobian": (Exponential(2, linear=JACOBIAN), 1.9, 1.9, 2.1),
    "order 1 eps": (Exponential(1, linear="eps"), 0.9, 0.9, 1.1),
    "order 2 eps": (Exponential(2, linear="eps"), 1.9, 1.9, 2.1),
    "order 2 eps midpoint": (Exponential(2, variant="midpoint", linear="eps"), 1.9, 1.9, 2.1),
    "order 3 eps": (Exponential(3, linear="eps"), 2.8, 2.8, 3.3),
    "angle 1": (Angle(1, STD), 0.9, 0.9, 1.1),
    "angle 2": (Angle(2, STD), 1.85, 1.9, 2.1),
    "ddim": (DDIM(), 0.9, 0.9, 1.1),
    "euler": (Heun(euler=True), 0.9, 0.9, 1.1),
    "flow euler": (Heun("flow", euler=True), 0.9, 0.9, 1.1),
    "heun": (Heun(), 1.9, 1.9, 2.1),
    "flow heun": (Heun("flow"), 1.9, 1.9, 2.1),
}
# with an exact history: otherwise the first steps, of lower order, are what is seen of the fine grids
WARM = {
    "order 3": (Exponential(3), 2.9, 3.1),
    "order 4": (Exponential(4), 3.9, 4.1),
    "order 3 eps": (Exponential(3, linear="eps"), 2.9, 3.1),
    "order 4 eps": (Exponential(4, linear="eps"), 3.9, 4.1),
    "order 4 F": (Exponential(4, linear="F", data_std=STD), 3.9, 4.1),
}


def denoised(log_ratio, y):
    here = level(log_ratio)
    return MIXTURE(here.alpha * torch.from_numpy(np.ascontiguousarray(y))[:, None], here).x0


def slope(log_ratio, y):
    """dy / dl = x0 - y with y = x / alpha."""
    return denoised(log_ratio, y)[:, 0].numpy() - y


def solution(start, end):
    y = (STARTS[:, 0] / level(FIRST).alpha).numpy()
    return integrate.solve_ivp(slope, (start, end), y, method="DOP853", rtol=1e-12, atol=1e-13, dense_output=True)


@pytest.fixture(scope="module")
def reference():
    found = solution(FIRST, LAST).y[:, -1]
    return level(LAST).alpha * torch.from_numpy(np.ascontiguousarray(found))[:, None]


@pytest.fixture(scope="module")
def before():
    """The path that leads to the starts."""
    return solution(FIRST, FIRST - 0.5).sol


def run(solver, steps, memory=None):
    grid = [level(FIRST + (LAST - FIRST) * i / steps) for i in range(steps + 1)]
    x = STARTS
    for here, there in pairwise(grid):
        x, memory = solver(MIXTURE, x, here, there, None, memory)
    return x


def error(found, reference):
    return float((found - reference).square().mean().sqrt())


def slopes(errors):
    return [math.log2(here / there) for here, there in pairwise(errors)]


@pytest.mark.parametrize("name", TABLE)
def test_the_error_falls_with_the_order(name, reference):
    solver, lowest, low, high = TABLE[name]
    found = slopes([error(run(solver, steps), reference) for steps in (80, 160, 320, 640)])
    assert min(found) >= lowest
    assert low <= found[-1] <= high


@pytest.mark.parametrize("name", WARM)
def test_the_error_falls_with_the_order_after_an_exact_history(name, reference, before):
    solver, low, high = WARM[name]
    errors = []
    for steps in (640, 1280):
        memory = Memory(0, (), None)
        for back in (3, 2, 1):
            at = FIRST - back * (LAST - FIRST) / steps
            here, x0 = level(at), denoised(at, before(at))
            x = here.alpha * torch.from_numpy(before(at))[:, None]
            node = (here, solver._residual(x, x0, here))
            memory = Memory(memory.step + 1, (node, *memory.history)[: solver.order], None)
        errors.append(error(run(solver, steps, memory), reference))
    assert low <= slopes(errors)[0] <= high


def test_the_reference_lands_on_the_mixture(reference):
    """Starts spread like the noise end at the data's modes, in their order."""
    assert bool((reference.diff(dim=0) > 0).all())
    assert float(reference[0]) == pytest.approx(-1.6, abs=0.4)
    assert float(reference[-1]) == pytest.approx(1.9, abs=0.5)


def test_higher_orders_are_better_at_equal_steps(reference):
    errors = {name: error(run(row[0], 80), reference) for name, row in TABLE.items()}
    assert errors["order 2 heun"] < errors["order 1"] / 5
    assert errors["order 2 midpoint"] < errors["order 1"] / 5
    assert errors["order 3"] < errors["order 2 heun"] / 5
    for order, plain in ((1, "order 1"), (2, "order 2 heun"), (3, "order 3")):
        assert errors[f"order {order} corrected"] < errors[plain] / 5


MEAN, VARIANCE = 0.7, 0.09


def gaussian_marginal(order, rho, steps):
    """Mean and variance at the end for data N(MEAN, VARIANCE), by the exact recursion of (x, last x0s); no samples."""
    grid = [level(FIRST + (LAST - FIRST) * i / steps) for i in range(steps + 1)]
    mean = np.zeros(order)
    mean[0] = grid[0].alpha * MEAN
    covariance = np.zeros((order, order))
    covariance[0, 0] = grid[0].alpha ** 2 * VARIANCE + grid[0].sigma ** 2
    for index, (here, there) in enumerate(pairwise(grid)):
        nodes = tuple(reversed(grid[max(0, index + 1 - order) : index + 1]))
        weights = step_weights(here, there, nodes, rho)
        gain = here.alpha * VARIANCE / (here.alpha**2 * VARIANCE + here.sigma**2)
        x0 = np.zeros(order)
        x0[0] = gain
        matrix = np.zeros((order, order))
        matrix[0, 0] = weights.linear
        matrix[0] += weights.values[0] * x0
        matrix[0, 1 : len(weights.values)] += weights.values[1:]
        if order > 1:
            matrix[1] = x0
            matrix[2:, 1:-1] = np.eye(order - 2)
        constant = np.zeros(order)
        constant[:2] = (weights.values[0], 1.0)[:order]
        mean = matrix @ mean + constant * MEAN * (1 - gain * here.alpha)
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += weights.noise**2
    return float(mean[0]), float(covariance[0, 0])


def weak_errors(order, rho, counts):
    end = level(LAST)
    mean, variance = end.alpha * MEAN, end.alpha**2 * VARIANCE + end.sigma**2
    found = [gaussian_marginal(order, rho, steps) for steps in counts]
    assert [pair[0] for pair in found] == pytest.approx([mean] * len(counts), rel=1e-12)
    return [abs(pair[1] / variance - 1) for pair in found]


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("order", "low", "high"), [(1, 0.9, 1.1), (2, 1.9, 2.1)])
def test_every_rho_keeps_the_marginal_of_a_gaussian(order, rho, low, high):
    errors = weak_errors(order, rho, (400, 800))
    assert errors[1] < (0.01 if order == 1 else 1e-4)
    assert low <= slopes(errors)[0] <= high


@pytest.mark.parametrize(("rho", "gain"), [(0.5, 20), (1.0, 5.5)])
def test_no_multistep_sde_is_of_weak_order_three(rho, gain):
    """Order 3 keeps the smaller constant, not the order."""
    second, third = (weak_errors(order, rho, (400, 800)) for order in (2, 3))
    assert 1.9 <= slopes(third)[0] <= 2.1
    assert third[1] < second[1] / gain
