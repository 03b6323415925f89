"""Sampling: a seed's image does not depend on its batch, the costs are counted, and mismatches are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pipelines import tiny_sd, tiny_sd3

from logsnr.core.config import from_dict, to_dict
from logsnr.core.errors import InputError, MissingError
from logsnr.core.types import Level, Prediction
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import denoiser_of, encode_prompts
from logsnr.schedules.families import scaled_linear
from logsnr.schedules.grids import uniform_time
from logsnr.solvers import table
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import start_noise, step_noise
from logsnr.solvers.sample import make_run, sample, sample_steps
from logsnr.solvers.scheduler import SNRScheduler
from logsnr.solvers.table import Analytic, SolverTable, load_table
from logsnr.worlds.load import WORLDS, load


@pytest.mark.parametrize("rho", [0.0, 1.0])
@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_a_seed_gives_the_same_image_in_any_batch_and_order(make: object, rho: float) -> None:
    pipe = make()
    config = SampleConfig(steps=4, rho=rho, grid="time" if make is tiny_sd3 else "scheduler")
    whole = sample(pipe, "a photo of a bag", seeds=range(5), config=config)
    other = sample(pipe, "a photo of a bag", seeds=[4, 1], config=config, batch_size=1)
    assert (other.latents[0] - whole.latents[4]).abs().max() <= 1e-4
    assert (other.latents[1] - whole.latents[1]).abs().max() <= 1e-4
    assert (other.images[0] - whole.images[4]).abs().max() <= 2 / 255
    assert (whole.latents[0] - whole.latents[1]).abs().max() > 0.1


def test_rho_is_a_number_one_a_step_or_a_preset() -> None:
    made = {}
    for rho in (0.0, "ode", (0.0, 0.0, 0.0), 1.0, "sde", (1.0, 1.0, 1.0), "bump", (0.0, 1.0, 0.0)):
        made[rho] = sample(tiny_sd(), "a bag", config=SampleConfig(steps=3, rho=rho)).latents
    for same in ((0.0, "ode", (0.0, 0.0, 0.0)), (1.0, "sde", (1.0, 1.0, 1.0))):
        assert all(torch.equal(made[rho], made[same[0]]) for rho in same)
    others = [made[rho] for rho in (0.0, 1.0, "bump", (0.0, 1.0, 0.0))]
    assert all(not torch.equal(a, b) for index, a in enumerate(others) for b in others[:index])


def test_rho_as_a_list_is_what_it_is_as_a_tuple() -> None:
    """As JSON has it."""
    config = SampleConfig(steps=2, rho=[0.5, 0.0])
    assert config == SampleConfig(steps=2, rho=(0.5, 0.0)) == from_dict(SampleConfig, to_dict(config))
    assert hash(config)


@pytest.mark.parametrize("rho", [[0.5], [0.5, -1.0], [0.5, "sde"], -1.0, float("nan")])
def test_a_rho_that_cannot_be_is_refused(rho: object) -> None:
    with pytest.raises(InputError, match="rho"):
        SampleConfig(steps=2, rho=rho)


def test_what_a_table_would_replace_is_refused_beside_it() -> None:
    table = Path("solver-5.json")
    kept = SampleConfig(solver=table, guidance_scale=3.0, negative="a bag")
    assert from_dict(SampleConfig, to_dict(kept)) == kept
    others = {"steps": 5, "order": 3, "rho": [0.5], "corrector": True, "variant": "heun", "grid": "time"}
    for name, value in others.items():
        with pytest.raises(InputError, match=f"^{name} cannot stand beside solver, .*: drop {name}, or solver$"):
            SampleConfig(solver=table, **{name: value})


def test_noise_is_bit_identical_and_each_step_has_its_own() -> None:
    start = Level(1.0, 0.0, 1.0)
    assert torch.equal(start_noise([7, 5], (4, 8, 8), start)[1], start_noise([5], (4, 8, 8), start)[0])
    assert torch.equal(step_noise([7, 5], (4,), 3)[1], step_noise([5], (4,), 3)[0])
    assert not torch.equal(step_noise([5], (4,), 3), step_noise([5], (4,), 4))
    assert not torch.equal(step_noise([5], (4,), 0), start_noise([5], (4,), start))


def test_start_noise_has_the_scale_of_its_level() -> None:
    level = Level(1.0, 0.6, 1.0)
    assert float(start_noise(range(400), (64,), level).std()) == pytest.approx(1.36**0.5, rel=0.02)


def test_evaluations_are_counted() -> None:
    made = sample(tiny_sd(), ["a bag", "a dark sneaker", "a bag"], seeds=[1, 2, 3], config=SampleConfig(steps=3))
    assert (made.nfe, made.network_evaluations, len(made.levels)) == (3, 18, 4)
    unguided = sample(tiny_sd(), "a bag", seeds=[1, 2, 3], config=SampleConfig(steps=3, guidance_scale=1.0))
    assert unguided.network_evaluations == 9
    assert not torch.equal(made.latents, unguided.latents)


@pytest.mark.parametrize(("prompts", "seeds"), [(["a", "b"], [1]), ("a", []), ([], [1])])
def test_prompts_and_seeds_that_do_not_match_are_refused(prompts: object, seeds: list[int]) -> None:
    with pytest.raises(InputError, match="do not match"):
        sample(tiny_sd(), prompts, seeds=seeds)


def test_steps_are_yielded_one_by_one_and_end_at_the_data() -> None:
    """A denoiser that always says the same clean point is followed exactly to it."""
    schedule, point = scaled_linear(), torch.full((2, 3), 0.7)

    def denoiser(xt: torch.Tensor, level: Level, cond: object = None) -> Prediction:
        return Prediction(point, (xt - level.alpha * point) / level.sigma)

    grid = uniform_time(schedule, 6)
    steps = list(sample_steps(denoiser, torch.randn(2, 3), grid, Exponential(order=2, rho=0.5), seeds=[1, 2]))
    assert len(steps) == 6
    assert torch.equal(steps[-1], point)


def test_the_grid_of_a_pipelines_own_snr_scheduler_is_kept() -> None:
    pipe = tiny_sd()
    pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, grid="karras")
    own = sample(pipe, "a bag", config=SampleConfig(steps=4)).levels
    assert own == sample(pipe, "a bag", config=SampleConfig(steps=4, grid="karras")).levels
    assert own != sample(tiny_sd(), "a bag", config=SampleConfig(steps=4)).levels


@pytest.mark.parametrize(
    ("scheduler", "grid", "rule"),
    [
        ({}, "karras", "karras"),
        ({}, "log-snr", "log-snr"),
        ({"use_karras_sigmas": True}, "scheduler", "karras"),
        ({"use_exponential_sigmas": True}, "scheduler", "log-snr"),
        ({"grid": "karras"}, "scheduler", "karras"),
        ({"grid": "karras"}, "tangent", None),
        ({}, "scheduler", None),
    ],
)
def test_a_high_order_on_a_coarse_grid_is_warned_of(
    recwarn: pytest.WarningsRecorder, scheduler: dict[str, object], grid: str, rule: str | None
) -> None:
    pipe = tiny_sd()
    kind = SNRScheduler if "grid" in scheduler else type(pipe.scheduler)
    pipe.scheduler, schedule = kind.from_config(pipe.scheduler.config, **scheduler), scaled_linear()
    for order, steps in ((2, 5), (3, 10), (3, 5)):
        assert not [said for said in recwarn.list if "extrapolates far" in str(said.message)]
        make_run(pipe, schedule, SampleConfig(steps=steps, order=order, grid=grid))
    found = [str(said.message) for said in recwarn.list if "extrapolates far" in str(said.message)]
    assert [text.split(" extrapolates")[0] for text in found] == ([f"order 3 on the grid {rule}"] if rule else [])


def test_a_solver_is_any_function_of_the_contract() -> None:
    def euler(denoiser, x, here, there, noise, memory):  # the frozen-x0 step is DDIM: it must equal order one
        said = denoiser(x, here)
        return there.alpha * said.x0 + there.sigma * said.eps, None

    pipe = tiny_sd()
    denoiser, grid = denoiser_of(pipe), uniform_time(scaled_linear(), 5)
    cond, start = encode_prompts(pipe, ["a bag"], guided=False), torch.randn(1, 4, 8, 8)
    ends = [list(sample_steps(denoiser, start, grid, s, cond=cond))[-1] for s in (euler, Exponential(order=1))]
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-4)


def test_a_half_precision_pipeline_is_sampled_in_float32_steps() -> None:
    pipe = tiny_sd()
    whole = sample(pipe, "a bag", config=SampleConfig(steps=3)).latents
    half = sample(pipe.to(torch.bfloat16), "a bag", config=SampleConfig(steps=3)).latents
    assert half.dtype == torch.float32
    assert (half - whole).abs().max() < 0.1 * whole.abs().max()


def test_more_evaluations_come_closer_to_the_fine_solution() -> None:
    pipe, latents = tiny_sd("v_prediction"), {}
    for steps in (8, 32, 400):
        latents[steps] = sample(pipe, "a bag", seeds=range(4), config=SampleConfig(steps=steps, grid="log-snr")).latents
    coarse, fine = (float((latents[steps] - latents[400]).square().mean().sqrt()) for steps in (8, 32))
    assert fine < coarse / 3


SHIPPED = sorted(int(path.stem) for path in (WORLDS["fashion"] / "solvers").glob("*.json"))


@pytest.mark.parametrize("calls", SHIPPED)
def test_a_shipped_table_is_for_the_world_at_the_default_guidance(calls):
    pipe, shipped = load("fashion"), load_table(f"fashion/{calls}")
    shipped.check_model(fingerprint(pipe.unet), SampleConfig().guidance_scale)
    assert shipped.steps == calls
    assert shipped.record["error_after"] < shipped.record["error_now"]


def test_shipped_tables_are_closer_to_the_fine_solution_than_the_worlds_own_scheduler():
    pipe, seeds = load("fashion"), range(4)
    prompts = [f"a photo of a {name}" for name in ("boot", "coat", "bag", "dress")]
    fine = sample(pipe, prompts, seeds=seeds, config=SampleConfig(steps=60, order=3, grid="log-snr")).latents

    def error(config):
        made = sample(pipe, prompts, seeds=seeds, config=config).latents
        return float((made - fine).flatten(1).square().mean(1).sqrt().mean())

    for calls in SHIPPED:
        assert error(SampleConfig(solver=Path(f"fashion/{calls}"))) < 0.75 * error(SampleConfig(steps=calls))


def test_a_table_that_leaves_the_trained_range_is_warned_of(tmp_path):
    far = SolverTable((-12.0, 1.0), analytic=Analytic(1)).save(tmp_path / "far.json")
    with pytest.warns(UserWarning, match="log-SNR -12 is outside the range"):
        make_run(tiny_sd(), scaled_linear(), SampleConfig(solver=far))


def test_the_folder_of_a_world_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_WORLDS", tmp_path)
    made = SolverTable((-3.0, 1.0), analytic=Analytic(2))
    made.save(tmp_path / "fashion_flow" / "solvers" / "2.json")
    assert load_table("fashion-flow/2") == made


def test_what_no_world_ships_is_named():
    assert 5 in SHIPPED
    with pytest.raises(MissingError, match=r"fashion ships solver tables for .*5.* evaluations, not 7"):
        load_table("fashion/7")
    for path in ("other/7", "../7", "../table.json"):
        with pytest.raises(MissingError, match="no file"):
            load_table(path)
