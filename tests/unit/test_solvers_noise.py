"""Brownian noise of steps: independent within a run, one path for every run of a seed, in the solver's own clock."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.core.types import Prediction
from logsnr.schedules.families import Flow, scaled_linear
from logsnr.schedules.grids import DATA, tangent
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.backward import PRESETS
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import BrownianNoise, noise_clock, seeds_of, step_noise
from logsnr.solvers.weights import step_weights

SHAPE, VP = (4, 8, 8), scaled_linear()
RHOS = {"0.5": 0.5, "sde": "sde", "2": 2.0, "bump": "bump", "function": lambda ratio: 1 / (1 + ratio**2)}


def spaced(steps, first=-5.0, last=5.0):
    return [*levels_of(VP, torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()), DATA]


@pytest.mark.parametrize("rho", RHOS.values(), ids=RHOS.keys())
def test_the_clock_is_that_of_the_solvers_noise(rho):
    """A step keeps exp(-gap) of the noise's variance: its own noise is the rest."""
    levels = spaced(12)
    clock = noise_clock(rho, levels)
    assert len(clock) == 13
    for here, there, (before, after) in zip(levels[:-2], levels[1:-1], pairwise(clock), strict=True):
        noise = step_weights(here, there, (here,), PRESETS.get(rho, rho) if isinstance(rho, str) else rho).noise
        assert noise == pytest.approx(there.sigma * math.sqrt(-math.expm1(before - after)), rel=1e-7, abs=1e-9)


def test_the_clock_does_not_depend_on_the_other_levels():
    for rho in (0.7, "bump", RHOS["function"]):
        whole, late = noise_clock(rho, spaced(20)), noise_clock(rho, spaced(20)[7:])
        assert late == pytest.approx(whole[7:], abs=1e-9)
    assert noise_clock(0.5, tangent(Flow(), 3)) == pytest.approx(
        [-math.inf, *[0.25 * level.log_snr for level in tangent(Flow(), 3)[1:-1]]]
    )
    assert noise_clock([0.0, 1.0, 0.5, 0.0], spaced(3, -3.0, 3.0)) == pytest.approx([0, 0, 2, 2.5])


def test_noise_of_a_run_is_independent_and_standard_normal():
    levels = tangent(Flow(), 8)
    noise = BrownianNoise(1.0, levels)
    rows = torch.stack([noise([3], (20_000,), step)[0] for step in range(7)])
    assert (torch.corrcoef(rows) - torch.eye(7)).abs().max() < 0.03
    assert (rows.std(1) - 1).abs().max() < 0.02


@pytest.mark.parametrize("rho", [0.1, 0.01, 0.003])
def test_noise_of_short_steps_is_independent_and_standard_normal_too(rho):
    noise = BrownianNoise(rho, spaced(20))
    rows = torch.stack([noise([3], (20_000,), step)[0] for step in range(20)])
    assert (torch.corrcoef(rows) - torch.eye(20)).abs().max() < 0.04
    assert (rows.std(1) - 1).abs().max() < 0.02


@pytest.mark.parametrize("seeds", [[4, 8, 15], [15], [15, 4], [15, 15]])
def test_noise_of_a_seed_is_bit_identical_in_any_batch_order_and_history(seeds):
    levels, alone = spaced(10), [BrownianNoise("bump", spaced(10))([15], SHAPE, step)[0] for step in (2, 3, 6)]
    noise = BrownianNoise("bump", levels)
    for step, expected in zip((2, 3, 6), alone, strict=True):
        found = noise(seeds, SHAPE, step)
        assert found.shape == (len(seeds), *SHAPE)
        assert torch.equal(found[seeds.index(15)], expected)


@pytest.mark.parametrize("rho", RHOS.values(), ids=RHOS.keys())
def test_the_noise_of_two_steps_is_that_of_one_over_both(rho):
    fine, coarse = BrownianNoise(rho, spaced(16)), BrownianNoise(rho, spaced(8))
    for step in range(8):
        gap = fine.clock[2 * step + 2] - fine.clock[2 * step + 1]
        whole = coarse.clock[step + 1] - coarse.clock[step]
        if gap < 1e-3 or whole - gap < 1e-3:  # ``bump`` is quiet at the ends
            continue
        first, second = (fine([9], SHAPE, 2 * step + half) for half in (0, 1))
        kept = math.exp(-gap / 2) * math.sqrt(-math.expm1(gap - whole))
        both = (kept * first + math.sqrt(-math.expm1(-gap)) * second) / math.sqrt(-math.expm1(-whole))
        torch.testing.assert_close(coarse([9], SHAPE, step), both, rtol=1e-4, atol=1e-4)


def run(steps, noise_of):
    """The sample at log-SNR 5 of a smooth denoiser, whose clean data lie near two points."""
    levels, x, memory = spaced(steps)[:-1], torch.full((2, *SHAPE), 0.3), None
    noise = noise_of(levels)

    def denoiser(xt, level, cond=None):
        x0 = torch.tanh(xt / (level.alpha + level.sigma))
        return Prediction(x0, (xt - level.alpha * x0) / level.sigma)

    for step, (here, there) in enumerate(pairwise(levels)):
        x, memory = Exponential(2, 0.7)(denoiser, x, here, there, noise([4, 9], SHAPE, step), memory)
    return x


def test_runs_of_more_steps_come_closer_to_one_sample_where_the_path_is_shared():
    truth = run(256, lambda levels: BrownianNoise(0.7, levels))
    gaps = [float((run(steps, lambda levels: BrownianNoise(0.7, levels)) - truth).std()) for steps in (16, 64)]
    apart = float((run(64, lambda levels: step_noise) - truth).std())
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[1] < 0.05 * apart


def test_seeds_are_those_of_the_generators():
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 11)]
    assert seeds_of(generators, 2) == [3, 11]
    assert seeds_of(generators[0], 1) == [3]
    for given, count in ((None, 1), (generators[0], 2), (generators, 1)):
        with pytest.raises(InputError, match="Brownian noise belongs to seeds"):
            seeds_of(given, count)
