"""Adaptive steps: a tolerance that is met, at fewer calls the looser it is, alike for every member."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate

from logsnr.core.errors import InputError
from logsnr.core.types import Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.schedules.families import VE, Cosine, Flow, Trig, scaled_linear
from logsnr.schedules.grids import DATA
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.adaptive import Adaptive, adaptive_steps

MIXTURE = GaussianMixture(
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    torch.tensor([[-1.2], [0.3], [1.5]], dtype=torch.float64),
    torch.tensor([[0.04], [0.01], [0.09]], dtype=torch.float64),
)
FIRST, LAST = -3.5, 4.5
STARTS = torch.linspace(-30, 30, 13, dtype=torch.float64)[:, None]
MEMBERS = {"cosine": Cosine(), "flow": Flow(), "ve": VE(0.001, 100), "stable": scaled_linear(), "trig": Trig(0.5)}


class Counted:
    """The exact denoiser, counting its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, xt, level, cond=None):
        self.calls += 1
        return MIXTURE(xt, level)


def ends(schedule):
    return levels_of(schedule, [2 * FIRST, 2 * LAST])


def solve(schedule, tolerance):
    """y = x / alpha at the last noisy level, the levels, and the number of calls."""
    denoiser, (start, end) = Counted(), ends(schedule)
    config = Adaptive(rtol=tolerance, atol=tolerance / 10)
    steps = list(adaptive_steps(denoiser, start.alpha * STARTS, schedule, start, end, config))
    return steps[-2][1] / end.alpha, [level for level, _ in steps], denoiser.calls


@pytest.fixture(scope="module")
def reference():
    level_of = Cosine()

    def slope(log_ratio, y):
        level = levels_of(level_of, [2 * log_ratio])[0]
        return MIXTURE(level.alpha * torch.from_numpy(y)[:, None], level).x0[:, 0].numpy() - y

    solved = integrate.solve_ivp(slope, (FIRST, LAST), STARTS[:, 0].numpy(), method="DOP853", rtol=1e-10, atol=1e-11)
    return torch.from_numpy(np.ascontiguousarray(solved.y[:, -1]))[:, None]


@pytest.mark.parametrize("schedule", MEMBERS.values(), ids=MEMBERS.keys())
@pytest.mark.parametrize(("tolerance", "most"), [(1e-2, 40), (1e-3, 60), (1e-5, 250)])
def test_the_tolerance_is_met(schedule, tolerance, most, reference):
    found, _, calls = solve(schedule, tolerance)
    assert float((found - reference).square().mean().sqrt()) < 3 * tolerance
    assert calls < most


def test_looser_tolerances_need_fewer_calls():
    calls = [solve(Cosine(), tolerance)[2] for tolerance in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)]
    assert all(here < there for here, there in pairwise(calls))
    # of third order: ten times the accuracy for about 10^(1/3) times the steps
    assert calls[-1] / calls[-2] == pytest.approx(10 ** (1 / 3), rel=0.2)


def test_the_steps_are_alike_for_every_member():
    found = [solve(schedule, 1e-3) for schedule in MEMBERS.values()]
    for y, levels, calls in found[1:]:
        assert calls == found[0][2]
        assert [level.log_snr for level in levels] == pytest.approx([level.log_snr for level in found[0][1]], rel=1e-9)
        assert torch.allclose(y, found[0][0], rtol=0, atol=1e-9)


def test_the_path_rises_in_log_snr_and_ends_at_data():
    _, levels, calls = solve(Flow(), 1e-2)
    assert all(there.log_snr > here.log_snr for here, there in pairwise(levels))
    assert levels[-1] == DATA
    assert levels[-2] == ends(Flow())[1]
    assert len(levels) == calls


def test_a_step_that_is_too_long_is_taken_back(reference):
    denoiser, (start, end) = Counted(), ends(Cosine())
    config = Adaptive(rtol=1e-3, atol=1e-4, first=4.0)
    x = start.alpha * STARTS
    steps = list(adaptive_steps(denoiser, x, Cosine(), start, end, config))
    there, moved = steps[0]
    # the first pair is of orders 0 and 1: y kept, and x0 kept
    estimate = (moved - there.alpha / start.alpha * x).square().mean().sqrt()
    assert float(estimate) <= 1e-4 + 1e-3 * float(torch.maximum(x.abs(), moved.abs()).max())
    assert there.log_ratio - FIRST < 1
    assert denoiser.calls == len(steps)
    assert float((steps[-2][1] / end.alpha - reference).square().mean().sqrt()) < 3e-3


def test_an_easy_problem_takes_long_steps():
    start, end = ends(Flow())
    denoiser = lambda xt, _: Prediction(torch.ones_like(xt), xt)  # noqa: E731
    steps = list(adaptive_steps(denoiser, torch.zeros(1, 1).double(), Flow(), start, end))
    assert len(steps) < 12
    assert steps[-1][1].item() == 1


@pytest.mark.parametrize("end", [0, 1])
def test_the_ends_must_be_inside(end):
    start, last = (Flow().level(t) for t in ((1, 0.1), (0.9, 0))[end])
    with pytest.raises(InputError, match="some data at the start and some noise at the end"):
        next(adaptive_steps(MIXTURE, STARTS, Flow(), start, last))


def test_too_many_calls_are_refused():
    start, end = ends(Flow())
    with pytest.raises(InputError, match="more than 5 evaluations"):
        list(adaptive_steps(MIXTURE, STARTS, Flow(), start, end, Adaptive(max_calls=5)))


@pytest.mark.parametrize(
    "options", [{"atol": 0.0}, {"rtol": -1.0}, {"first": 0.0}, {"max_calls": 0}, {"rtol": math.nan}]
)
def test_impossible_tolerances_are_refused(options):
    with pytest.raises(InputError, match="must be positive"):
        Adaptive(**options)
