"""Orders of convergence as a table: the slope of the error over the last halving of the step, on a known problem.

The problem is a 1-D mixture of three Gaussians with its exact x0; the reference is scipy's DOP853 in the same variable.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from logsnr.core.types import Level, Prediction
from logsnr.solvers.exponential import Exponential

WEIGHTS = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
MEANS = torch.tensor([-1.2, 0.3, 1.5], dtype=torch.float64)
VARIANCES = torch.tensor([0.04, 0.01, 0.09], dtype=torch.float64)
FIRST, LAST = -3.5, 4.5
STARTS = torch.linspace(-2, 2, 41, dtype=torch.float64)

# solver, lowest and highest slope from 320 to 640 steps
TABLE = {
    "order 1": (Exponential(1), 0.9, 1.1),
    "order 2 heun": (Exponential(2, variant="heun"), 1.9, 2.2),
    "order 2 midpoint": (Exponential(2, variant="midpoint"), 1.9, 2.2),
}


def level(log_ratio):
    return Level(0.5, 1 / math.sqrt(1 + math.exp(-2 * log_ratio)), 1 / math.sqrt(1 + math.exp(2 * log_ratio)))


def denoise(xt, here, _cond=None):
    """The exact posterior mean of the mixture."""
    variances = here.alpha**2 * VARIANCES + here.sigma**2
    away = xt[:, None] - here.alpha * MEANS
    responsibilities = torch.softmax(WEIGHTS.log() - 0.5 * (away.square() / variances + variances.log()), 1)
    x0 = (responsibilities * (MEANS + here.alpha * VARIANCES / variances * away)).sum(1)
    return Prediction(x0, (xt - here.alpha * x0) / here.sigma)


def solve(solver, steps):
    grid = [level(FIRST + (LAST - FIRST) * i / steps) for i in range(steps + 1)]
    x, memory = STARTS, None
    for here, there in pairwise(grid):
        x, memory = solver(denoise, x, here, there, None, memory)
    return x


@pytest.fixture(scope="module")
def reference():
    """dy / dl = x0 - y with y = x / alpha."""

    def slope(log_ratio, y):
        here = level(log_ratio)
        return denoise(here.alpha * torch.from_numpy(y), here).x0.numpy() - y

    start = (STARTS / level(FIRST).alpha).numpy()
    solution = integrate.solve_ivp(slope, (FIRST, LAST), start, method="DOP853", rtol=1e-12, atol=1e-13)
    return level(LAST).alpha * torch.from_numpy(np.ascontiguousarray(solution.y[:, -1]))


@pytest.mark.parametrize("name", TABLE)
def test_the_error_falls_with_the_order(name, reference):
    solver, low, high = TABLE[name]
    errors = [float((solve(solver, steps) - reference).square().mean().sqrt()) for steps in (320, 640)]
    assert low <= math.log2(errors[0] / errors[1]) <= high


def test_the_reference_lands_on_the_mixture(reference):
    """Starts spread like the noise end at the data's modes, in their order."""
    assert bool((reference.diff() > 0).all())
    assert float(reference[0]) == pytest.approx(-1.6, abs=0.4)
    assert float(reference[-1]) == pytest.approx(1.9, abs=0.5)


def test_order_two_is_better_at_equal_steps(reference):
    errors = {name: float((solve(row[0], 80) - reference).square().mean().sqrt()) for name, row in TABLE.items()}
    assert errors["order 2 heun"] < errors["order 1"] / 5
    assert errors["order 2 midpoint"] < errors["order 1"] / 5
