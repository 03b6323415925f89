"""Inversion: the path of the ODE backwards, at its order, and there and back."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from typing import Any

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3
from torch import Tensor

import logsnr
from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.models.pipeline import denoiser_of, encode_prompts
from logsnr.schedules.families import VE, Cosine, Flow, scaled_linear
from logsnr.schedules.grids import DATA, tangent, uniform_log_snr, uniform_time
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.invert import invert, round_trip_error
from logsnr.solvers.sample import sample_steps

MEAN, STD = 0.7, 0.3
GAUSSIAN, MIXTURE = (
    GaussianMixture(*(torch.tensor(row, dtype=torch.float64) for row in rows))
    for rows in (
        ([1.0], [[MEAN]], [[STD**2]]),
        ([0.3, 0.5, 0.2], [[-1.2], [0.3], [1.5]], [[0.04], [0.01], [0.09]]),
    )
)
STABLE = scaled_linear()


def exact(x: Tensor, here: Level, there: Level) -> Tensor:
    """The ODE of Gaussian data: distances from the mean go with the deviation of the marginal."""
    spread = [math.hypot(at.alpha * STD, at.sigma) for at in (here, there)]
    return there.alpha * MEAN + spread[1] / spread[0] * (x - here.alpha * MEAN)


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


# order: slopes of the error between 20, 40, 80 and 160 steps, at least
SLOPES = {1: 0.9, 2: 1.9, 3: 2.9}


@pytest.mark.parametrize("order", SLOPES)
def test_the_error_falls_with_the_order(order: int) -> None:
    """Between noisy levels, of which the last is near data: there x0 hardly changes, and first steps are good ones."""
    errors = []
    for steps in (20, 40, 80, 160):
        grid = levels_of(Cosine(), torch.linspace(-5, 12, steps + 1).tolist())
        x = grid[-1].alpha * GAUSSIAN.sample(64)
        errors.append(rms(invert(GAUSSIAN, x, grid, order=order) - exact(x, grid[-1], grid[0])))
    assert min(math.log2(here / there) for here, there in pairwise(errors)) > SLOPES[order]


def test_higher_orders_come_back_closer() -> None:
    x, grid = MIXTURE.sample(256), uniform_log_snr(STABLE, 20)
    errors = [
        rms(round_trip_error(MIXTURE, x, grid, noise=invert(MIXTURE, x, grid, order=order), order=order))
        for order in (1, 2, 3)
    ]
    assert errors[0] > 20 * errors[1]
    assert errors[1] > 1.3 * errors[2]
    assert errors[2] < 0.005


@pytest.mark.parametrize(
    "grid",
    [uniform_log_snr(STABLE, 60), uniform_log_snr(VE(0.01, 50), 60), uniform_time(Flow(), 60), tangent(Cosine(), 60)],
    ids=["stable", "ve", "flow", "cosine"],
)
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_there_and_back_is_near_for_every_member(data: GaussianMixture, grid: list[Level]) -> None:
    """Also to exactly no data, which the last two grids begin with."""
    x = data.sample(256)
    noise = invert(data, x, grid)
    assert rms(round_trip_error(data, x, grid, noise=noise)) < 0.003
    scale = math.hypot(grid[0].alpha * data.std, grid[0].sigma)
    assert rms(noise - grid[0].alpha * data.mean) == pytest.approx(scale, rel=0.1)


def test_the_reported_error_is_the_distance_of_each_sample() -> None:
    x, grid = MIXTURE.sample(6).reshape(3, 2), uniform_log_snr(STABLE, 8)

    def flat(xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        said = MIXTURE(xt.reshape(-1, 1), level)
        return Prediction(said.x0.reshape(xt.shape), said.eps.reshape(xt.shape))

    noise = invert(flat, x, grid)
    back = deque(sample_steps(flat, noise, grid, Exponential(2)), maxlen=1).pop()
    found = round_trip_error(flat, x, grid, noise=noise)
    assert found.tolist() == pytest.approx([rms(row) for row in back - x])
    assert float(found.min()) > 0


def test_the_last_step_of_sampling_is_undone_too() -> None:
    """Leaving it out, as if data were a sample at the last noisy level, keeps an error that no grid removes."""
    x, grid = GAUSSIAN.sample(64), uniform_log_snr(STABLE, 200)
    noise, without = invert(GAUSSIAN, x, grid), invert(GAUSSIAN, grid[-2].alpha * x, grid[:-1])
    errors = [rms(round_trip_error(GAUSSIAN, x, grid, noise=z)) for z in (noise, without)]
    assert errors[0] < 1e-4
    assert errors[1] > 20 * errors[0]


def test_a_grid_that_ends_in_noise_begins_with_a_sample_there() -> None:
    grid = levels_of(Cosine(), torch.linspace(-4, 1, 81).tolist())
    x = grid[-1].alpha * MEAN + math.hypot(grid[-1].alpha * STD, grid[-1].sigma) * torch.linspace(-2, 2, 9)[:, None]
    assert rms(invert(GAUSSIAN, x.double(), grid) - exact(x, grid[-1], grid[0])) < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_costs_as_many_calls_as_sampling_and_passes_the_conditioning(steps: int) -> None:
    asked = []

    def denoiser(xt: Tensor, level: Level, cond: Any = None) -> Prediction:
        asked.append((level, cond))
        return GAUSSIAN(xt, level)

    grid = uniform_log_snr(STABLE, steps) if steps > 1 else [STABLE.level(0.5), DATA]
    x = GAUSSIAN.sample(3)
    kept = x.clone()
    invert(denoiser, x, grid, cond="a bag")
    last = grid[-2]
    assert asked == [(level, "a bag") for level in [last, *grid[-2:0:-1]]]
    assert torch.equal(x, kept)


def test_a_pipelines_own_image_leads_back_to_its_noise() -> None:
    pipe = tiny_sd("v_prediction")
    denoiser, cond = denoiser_of(pipe), encode_prompts(pipe, ["a bag"], guided=False)
    grid, start = uniform_log_snr(denoiser.schedule, 40), torch.randn(1, 4, 8, 8)
    x = deque(sample_steps(denoiser, start, grid, Exponential(2), cond=cond), maxlen=1).pop()
    noise = logsnr.invert(denoiser, x, grid, cond=cond)
    assert float((noise - start).square().mean().sqrt()) < 0.05
    assert float(round_trip_error(denoiser, x, grid, noise=noise, cond=cond)) < 0.01


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_what_inversion_finds_is_sampled_again(make: Any) -> None:
    """There and back through ``sample``, guided, in batches of any size: what ``round_trip_error`` reports."""
    pipe, prompts = make(), ["a bag", "a boot", "a bag"]
    config = SampleConfig(steps=6, grid="tangent", variant="heun")
    made = logsnr.sample(pipe, prompts, seeds=range(3), config=config)
    denoiser, cond = denoiser_of(pipe, guidance_scale=config.guidance_scale), encode_prompts(pipe, prompts)
    noise = logsnr.invert(denoiser, made.latents, made.levels, cond=cond)
    again = logsnr.sample(pipe, prompts, seeds=range(3), latents=noise, config=config, batch_size=2)
    expected = round_trip_error(denoiser, made.latents, made.levels, noise=noise, cond=cond)
    assert [rms(row) for row in again.latents - made.latents] == pytest.approx(expected.tolist(), rel=1e-3)
    others = logsnr.sample(pipe, prompts, seeds=range(3, 6), latents=noise, config=config).latents
    assert torch.allclose(others, again.latents, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 3, 8, 8), (2, 4, 8)])
def test_latents_are_one_a_seed_in_the_shape_of_the_pipeline(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"start from \(2, 4, 8, 8\), one a seed"):
        logsnr.sample(tiny_sd(), "a bag", seeds=[1, 2], latents=torch.zeros(shape))


@pytest.mark.parametrize("rho", [0.5, "sde", [0.0, 1.0], lambda log_ratio: log_ratio])
def test_noise_cannot_be_taken_back(rho: Any) -> None:
    with pytest.raises(InputError, match="use rho = 0"):
        invert(GAUSSIAN, GAUSSIAN.sample(1), uniform_log_snr(STABLE, 3), rho=rho)


@pytest.mark.parametrize(
    ("grid", "order", "message"),
    [
        (uniform_time(Flow(), 1), 2, "keeps nothing of the data"),
        (uniform_time(Flow(), 3)[::-1], 2, "does not fall strictly"),
        (uniform_time(Flow(), 3), 5, "order is 5"),
    ],
)
def test_what_cannot_be_inverted_is_refused(grid: list[Level], order: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        invert(GAUSSIAN, GAUSSIAN.sample(1), grid, order=order)
