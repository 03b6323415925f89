"""Calibration on exact mixtures: the table beats the analytic solvers unseen, costs what was said, and falls back."""

import json
import math
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from pipelines import tiny_sd

from logsnr.cli.calibrate import Calibrate
from logsnr.core.errors import BrokenError, InputError
from logsnr.core.types import Prediction
from logsnr.data.mixture import GaussianMixture
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import denoiser_of, encode_prompts, latent_shape
from logsnr.schedules.families import VE, Flow, scaled_linear
from logsnr.schedules.grids import DATA, karras
from logsnr.solvers.calibrate import ANALYTIC, calibrate, calibrate_denoiser
from logsnr.solvers.config import CalibrateConfig, SampleConfig
from logsnr.solvers.fit import errors, roll
from logsnr.solvers.plan import plan_nodes, snap_nodes
from logsnr.solvers.price import price, within
from logsnr.solvers.reference import Model, make_reference
from logsnr.solvers.refine import evaluations
from logsnr.solvers.sample import make_solver, sample, sample_steps
from logsnr.solvers.table import Analytic, SolverTable, load_table, sigma_list, time_list

TINY = CalibrateConfig(steps=3, num_fit=4, num_selection=2, num_gate=2, reference_steps=8, rivals=1)
ANGLES = torch.arange(8, dtype=torch.float64) * math.pi / 4
RING = GaussianMixture(
    torch.full((8,), 1 / 8, dtype=torch.float64),
    0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1),
    torch.full((8, 2), 0.0025, dtype=torch.float64),
)
SCHEDULE = VE(0.02, 20.0)
CONFIG = CalibrateConfig(steps=8)
QUICK = replace(CONFIG, grids=("planned",), rounds=0, rivals=1)


def noise(config, seed=0):
    count = config.num_fit + config.num_selection + config.num_gate
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(table, schedule, start):
    """Samples of a table from unit noise, in the schedule's own scale."""
    levels, solver, memory = table.levels(schedule), table.solver(), None
    x = start * math.hypot(levels[0].alpha, levels[0].sigma)
    for here, there in pairwise(levels):
        x, memory = solver(RING, x, here, there, None, memory)
    return x


@pytest.fixture(scope="module")
def found():
    return calibrate_denoiser(RING, SCHEDULE, noise(CONFIG), config=CONFIG)


@pytest.fixture(scope="module")
def model():
    return Model(RING, SCHEDULE, (2,), None)


@pytest.fixture(scope="module")
def reference(model):
    start = torch.randn(32, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return make_reference(model, start, torch.arange(32), 60)


def test_the_table_beats_every_analytic_solver_on_noise_that_nobody_saw(found):
    table, record = found
    assert record["winner"] == "calibrated"
    start = torch.randn(512, 2, generator=torch.Generator().manual_seed(77), dtype=torch.float64)
    fine = make_reference(Model(RING, SCHEDULE, (2,), None), start, torch.arange(512), 250).final
    error = float((solve(table, SCHEDULE, start) - fine).square().mean(1).sqrt().mean())
    assert error / 0.5 < record["error_before"] / 2


def test_the_price_is_known_before_and_is_not_exceeded(found):
    _, record = found
    now = CONFIG.num_gate * CONFIG.steps
    assert record["error_now"] is None  # nobody told the levels of today
    assert 0.98 * price(CONFIG, guided=False) <= record["network_evaluations"] + now <= price(CONFIG, guided=False)
    assert price(CONFIG, guided=True) == 2 * price(CONFIG, guided=False)


@pytest.mark.parametrize("schedule", [Flow(), scaled_linear()])
def test_a_table_gives_the_same_samples_in_every_schedule(found, schedule):
    """It is made of log-SNR and of numbers at y = x / alpha: only the first level may lie outside a schedule."""
    log_snr = (-5.3, *found[0].log_snr[-4:])
    table = replace(found[0], log_snr=log_snr, coefficients=found[0].coefficients[-5:])
    start = torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.allclose(solve(table, SCHEDULE, start), solve(table, schedule, start), atol=1e-9)


def test_coefficients_that_were_fitted_on_the_wrong_noise_are_not_kept():
    """Nearly silent start noises teach nothing: the gate sees it and keeps an analytic solver, which it names."""
    config = replace(CONFIG, num_gate=64, grids=("tangent",), ridges=(1e-9,))
    start = noise(config)
    start[: config.num_fit + config.num_selection] *= 1e-3
    table, record = calibrate_denoiser(RING, SCHEDULE, start, config=config)
    assert record["winner"] != "calibrated"
    assert record["gate"]["calibrated"] > record["error_after"] == record["error_before"]
    assert table.coefficients == ()
    assert table.analytic is not None


def test_the_documentation_quotes_the_price():
    page = (Path(__file__).parents[2] / "docs" / "calibration.md").read_text(encoding="utf-8")
    large = {"num_fit": 128, "num_selection": 64, "num_gate": 64, "reference_steps": 160}
    for changes in ({}, {"steps": 5}, {"steps": 20}, {"rounds": 0}, {"steps": 8, **large}):
        assert f"{price(CalibrateConfig(**changes), guided=True):,}" in page, changes
    formula = {steps: int(3.5 * steps**2 - 12.5 * steps + 20) * 7 + 3 * steps * 9 for steps in range(4, 30)}
    assert "(3.5 N² - 12.5 N + 20) x num_fit + 3 N x (num_fit + num_selection)" in page
    assert formula == {steps: evaluations(steps, 7, 9, 1) for steps in formula}


def test_what_is_sampled_today_is_measured_and_paid_for():
    """From the noises of the gate, with the default solver of ``sample``, ended clean, at the price of one rival."""
    start = noise(QUICK)
    own, (_, without) = karras(SCHEDULE, 8), calibrate_denoiser(RING, SCHEDULE, start, config=QUICK)
    table, record = calibrate_denoiser(RING, SCHEDULE, start, config=QUICK, own=own)
    unseen = start[-QUICK.num_gate :]
    fine = make_reference(Model(RING, SCHEDULE, (2,), None), unseen, torch.arange(len(unseen)), QUICK.reference_steps)
    *_, made = sample_steps(RING, unseen * math.hypot(own[0].alpha, own[0].sigma), own, make_solver(SampleConfig()))
    assert record["error_now"] == pytest.approx(float(errors(made, fine).mean()), rel=1e-3)
    assert record["error_after"] < record["error_now"]
    assert table.coefficients
    assert record["network_evaluations"] - without["network_evaluations"] == QUICK.num_gate * QUICK.steps
    assert record["network_evaluations"] <= price(QUICK, guided=False)
    short = [*own[:-1], SCHEDULE.level(1e-4)]  # as of a scheduler that leaves some noise
    assert calibrate_denoiser(RING, SCHEDULE, start, config=QUICK, own=short)[1] == record


def test_the_table_is_never_worse_than_what_is_sampled_today(found):
    """Where nothing that was fitted or planned beats today's levels, the table holds just these."""
    start, own = noise(QUICK), found[0].levels(SCHEDULE)
    start[: QUICK.num_fit + QUICK.num_selection] *= 1e-3
    table, record = calibrate_denoiser(RING, SCHEDULE, start, config=replace(QUICK, grids=("log-snr",)), own=own)
    assert record["winner"] == "order 2 midpoint/scheduler"
    assert record["error_after"] == record["error_before"] == record["error_now"]
    assert table.analytic == Analytic(2, "midpoint")
    assert sigma_list(table.levels(SCHEDULE)) == pytest.approx(sigma_list(own))


def test_what_is_advised_without_calibration_is_a_rival(found):
    assert {"order 3 heun corrected/log-snr-early", "order 2 midpoint/table"} <= found[1]["gate"].keys()


def test_the_levels_alone_are_measured_as_they_are_printed(found):
    """``grid_only`` is the best analytic solver on the levels of the table, on the noises of the gate."""
    table, record = found
    unseen, model = noise(CONFIG)[-CONFIG.num_gate :], Model(RING, SCHEDULE, (2,), None)
    fine = make_reference(model, unseen, torch.arange(len(unseen)), CONFIG.reference_steps)
    pasted = [replace(table, coefficients=(), analytic=solver) for solver in ANALYTIC[: CONFIG.rivals]]
    measured = min(float(errors(solve(each, SCHEDULE, unseen), fine).mean()) for each in pasted)
    assert record["grid_only"] == pytest.approx(measured, rel=1e-6)
    gained = record["error_before"] - record["error_after"]
    assert record["grid_share"] == pytest.approx((record["error_before"] - measured) / gained)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 5, 8, 10, 20])
def test_a_budget_is_spent_and_not_exceeded(steps, guided):
    made = within(CalibrateConfig(steps=steps, seed=7), 6000, guided=guided)
    assert (made.steps, made.seed) == (steps, 7)
    assert 0.85 * 6000 < price(made, guided=guided) <= 6000


def test_a_large_budget_buys_rounds_and_a_small_one_is_refused():
    config = CalibrateConfig(steps=8)
    assert within(config, 3000, guided=False).rounds == 1 < within(config, 50_000, guided=False).rounds
    with pytest.raises(InputError, match="a budget of 400 is too small for 8 steps: give at least") as refused:
        within(config, 400, guided=False)
    needed = int(str(refused.value).rsplit(" ", 1)[1])
    assert price(within(config, needed, guided=False), guided=False) == needed


def test_planned_nodes_are_distinct_and_start_at_the_noise(reference):
    for steps in (1, 2, 5, 20, 60):
        nodes = plan_nodes(reference, steps, 32, 1e-5)
        assert len(nodes) == steps
        assert nodes[0] == 0
        assert all(here < there for here, there in pairwise(nodes))


def test_planned_nodes_have_the_least_local_error_of_all():
    """Against every choice of 4 of 9 nodes, with the errors recomputed by least squares."""
    start = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    small = make_reference(Model(RING, SCHEDULE, (2,), None), start, torch.arange(24), 9)

    def local(nodes):
        total, std = 0.0, small.data_std
        for place, node in enumerate(nodes):
            last = place + 1 == len(nodes)
            target = small.final if last else small.states[nodes[place + 1]]
            rows = [small.states[node], small.estimates[node]]
            if place:
                rows.append(small.estimates[nodes[place - 1]])
            inputs = torch.stack([row.flatten() for row in rows], 1).double().numpy()
            solution = np.linalg.lstsq(inputs, target.double().flatten().numpy(), rcond=None)[0]
            rms = np.sqrt(np.mean((inputs @ solution - target.double().flatten().numpy()) ** 2))
            there = DATA if last else small.levels[nodes[place + 1]]
            total += rms * (1.0 if last else std / math.hypot(std * there.alpha, there.sigma))
        return total

    choices = [(0, a, b, c) for a in range(1, 9) for b in range(a + 1, 9) for c in range(b + 1, 9)]
    chosen = local(plan_nodes(small, 4, 24, 1e-12))
    assert chosen == pytest.approx(min(local(nodes) for nodes in choices), rel=1e-4)


@pytest.mark.parametrize("grid", ["log-snr", "karras", "beta", "tangent"])
def test_known_grids_snap_to_distinct_nodes(reference, grid):
    nodes = snap_nodes(grid, reference, 12)
    assert len(set(nodes)) == 12
    assert nodes == tuple(sorted(nodes))
    assert (nodes[0], nodes[-1] > 40) == (0, True)


def test_a_strong_ridge_keeps_the_analytic_coefficients(model, reference):
    nodes, rows = snap_nodes("tangent", reference, 8), torch.arange(32)
    stiff, (first, _) = roll(model, reference, nodes, 24, 1e9, rows)
    _, (second, _) = roll(model, reference, nodes, 24, 1e-5, rows)
    assert np.abs(stiff.coefficients[-1] - [0, 1, 0, 0, 0, 0]).max() < 1e-6
    assert float(errors(second, reference)[:24].mean()) < float(errors(first, reference)[:24].mean())


@pytest.mark.parametrize("steps", [3, 5])
def test_infinite_noise_costs_no_call(steps):
    """Its exact step leads to a level that is worth a call of its own, not to next to pure noise."""
    config = replace(CONFIG, steps=steps)
    table, record = calibrate_denoiser(RING, Flow(), noise(config), config=config)
    assert table.infinite_start
    assert table.steps == steps
    assert table.log_snr[0] > -8
    assert record["winner"] == "calibrated"
    start = torch.randn(8, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert bool(solve(table, Flow(), start).isfinite().all())
    assert sigma_list(table.levels(Flow()))[0] == math.inf
    assert time_list(table.levels(Flow()))[0] == 1.0


@pytest.mark.parametrize("grid", ["planned", "tangent"])
def test_no_grid_asks_twice_about_pure_noise(grid):
    model = Model(RING, Flow(), (2,), None)
    start = torch.randn(24, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = make_reference(model, start, torch.arange(24), 60)
    nodes = plan_nodes(reference, 5, 24, 1e-5) if grid == "planned" else snap_nodes(grid, reference, 5)
    assert (len(nodes), nodes[0]) == (5, 0)
    assert nodes[1] > 5


def test_one_step_from_infinite_noise_leaves_nothing_to_fit():
    config = replace(CONFIG, steps=1, grids=("planned",))
    with pytest.raises(InputError, match="nothing to fit"):
        calibrate_denoiser(RING, Flow(), noise(config), config=config)


def test_a_table_is_saved_whole_and_read_back(found, tmp_path):
    path = found[0].save(tmp_path / "deep" / "table.json")
    assert load_table(path) == found[0]
    assert [entry.name for entry in path.parent.iterdir()] == ["table.json"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        ("[]", "no solver"),
        ("{}", "no solver"),
        ('{"log_snr": [1], "odd": 2}', "'odd'"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, complaint):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises((InputError, BrokenError), match=complaint):
        load_table(path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": "other"}, "format"),
        ({"coefficients": []}, "either"),
        ({"coefficients": [[1]]}, "2 to 6 coefficients"),
        ({"log_snr": [3.0, 1.0], "coefficients": [[1, 0, 0, 0]] * 2}, "fall strictly"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(found, tmp_path, changes, complaint):
    path = found[0].save(tmp_path / "table.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=complaint):
        load_table(path).levels(SCHEDULE)


def test_a_fallback_serves_the_analytic_solver():
    table = SolverTable(log_snr=(-3.0, 0.0, 3.0), analytic=Analytic(2, "heun", corrector=True))
    assert (table.solver().order, table.solver().corrector) == (2, True)


@pytest.mark.parametrize(
    "changes",
    [{"steps": 0}, {"steps": 61}, {"num_gate": 1}, {"grids": ()}, {"ridges": (0.0,)}, {"rivals": 6}],
)
def test_a_calibration_that_cannot_be_is_refused(changes):
    with pytest.raises(InputError):
        replace(CONFIG, **changes)


def test_start_noises_must_be_as_many_as_needed():
    with pytest.raises(InputError, match="64 start noises"):
        calibrate_denoiser(RING, SCHEDULE, torch.randn(3, 2), config=CONFIG)


@pytest.mark.parametrize("first", [-10.0, 2.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_leaves_the_finite_numbers_is_refused_at_once(value, first):
    calls = []

    def broken(xt, level, cond=None):
        calls.append(level.log_snr)
        return Prediction(torch.full_like(xt, value), xt) if level.log_snr > first else RING(xt, level)

    with pytest.raises(InputError, match=r"not finite at t = [\d.]+, .*: check its weights"):
        calibrate_denoiser(broken, SCHEDULE, noise(QUICK), config=QUICK)
    assert sum(at > first for at in calls) == 1


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_network_that_always_says_the_same_is_refused(value):
    def constant(xt, level, cond=None):
        return Prediction(torch.full_like(xt, value), xt)

    with pytest.raises(InputError, match="the same sample from every noise.*: check its weights"):
        calibrate_denoiser(constant, SCHEDULE, noise(QUICK), config=QUICK)


def test_a_solver_that_left_the_finite_numbers_does_not_win(monkeypatch):
    broken = SolverTable(tuple(np.linspace(-5, 5, 8)), ((math.nan,) * 6,) * 8)
    monkeypatch.setattr("logsnr.solvers.calibrate.to_table", lambda fit: broken)
    table, record = calibrate_denoiser(RING, SCHEDULE, noise(QUICK), config=QUICK)
    assert record["gate"]["calibrated"] == math.inf
    assert record["winner"] != "calibrated"
    assert record["error_after"] == min(record["gate"].values()) <= record["error_before"] < 1
    assert table.analytic is not None
    monkeypatch.setattr("logsnr.solvers.calibrate._rivals", lambda *_: [])
    with pytest.raises(InputError, match="every solver left the finite numbers"):
        calibrate_denoiser(RING, SCHEDULE, noise(QUICK), config=QUICK)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_only_what_is_evaluated_is_counted(guidance_scale):
    """Rows for guidance cost nothing where guidance makes no use of them."""
    pipe, config = tiny_sd(), replace(TINY, rounds=0, grids=("tangent",))
    denoiser, cond = denoiser_of(pipe, guidance_scale=guidance_scale), encode_prompts(pipe, ["a bag"] * 8)
    rows, asked = [], pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    start = torch.randn(8, *latent_shape(pipe), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # what a denoiser did before is not counted
        rows.clear()
        _, record = calibrate_denoiser(denoiser, denoiser.schedule, start, cond=cond, config=config)
        assert record["network_evaluations"] == sum(rows)
    asked.remove()
    assert sum(rows) <= price(config, guided=guidance_scale > 1)


@pytest.fixture(scope="module")
def calibrated_pipe():
    pipe = tiny_sd()
    return pipe, *calibrate(pipe, ["a photo of a bag"], config=TINY)


def test_a_table_made_by_default_serves_by_default(calibrated_pipe):
    assert calibrated_pipe[1].guidance_scale == SampleConfig().guidance_scale == Calibrate(model="").guidance_scale


def test_another_negative_prompt_is_warned_of(calibrated_pipe, tmp_path, recwarn):
    """Where guidance leads away from one; tables of earlier versions, which do not name it, were made with none."""
    pipe, table, _ = calibrated_pipe
    named, _ = calibrate(pipe, ["a photo of a bag"], negative="a boot", config=replace(TINY, rounds=0, rivals=1))
    assert (table.negative, named.negative) == ("", "a boot")
    named.check_model(named.fingerprint, 2.0, "a boot")
    replace(named, guidance_scale=1.0).check_model(named.fingerprint, 1.0, "a bag")
    content = {name: value for name, value in asdict(table).items() if name != "negative"}
    load_table(content).check_model(table.fingerprint, 2.0, "")
    assert not [each for each in recwarn.list if "negative prompt" in str(each.message)]
    config = SampleConfig(solver=named.save(tmp_path / "table.json"))
    with pytest.warns(UserWarning, match="made with the negative prompt 'a boot', not ''.*: .* calibrate with the one"):
        sample(pipe, "a bag", config=config)
    with pytest.warns(UserWarning, match="the negative prompt '', not 'a coat'"):
        load_table(content).check_model(table.fingerprint, 2.0, "a coat")


def test_a_pipeline_is_calibrated_and_served(calibrated_pipe, tmp_path):
    pipe, table, record = calibrated_pipe
    assert table.fingerprint == fingerprint(pipe.unet)
    path = table.save(tmp_path / "table.json")
    made = sample(pipe, "a photo of a bag", seeds=[1, 2], config=SampleConfig(solver=path))
    assert made.nfe == 3
    assert len(made.levels) == 4
    assert 0 < record["network_evaluations"] <= price(TINY, guided=True)
    assert record["error_after"] <= record["error_now"]
    kept = load_table(path).record
    assert kept["error_now"] == record["error_now"]
    assert kept["gate"] == {name: value for name, value in record["gate"].items() if math.isfinite(value)}
    assert kept["config"]["seed"] == TINY.seed
    assert kept["version"] == version("logsnr")


def test_a_scheduler_that_cannot_make_the_steps_is_no_rival():
    pipe = tiny_sd()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=TINY.steps - 1)
    _, record = calibrate(pipe, ["a photo of a bag"], config=replace(TINY, rounds=0))
    assert record["error_now"] is None
    assert "order 2 midpoint/scheduler" not in record["gate"]


def test_a_table_of_another_model_or_guidance_is_refused(calibrated_pipe, tmp_path):
    pipe, table, _ = calibrated_pipe
    path = table.save(tmp_path / "table.json")
    with pytest.raises(InputError, match="guidance_scale 2, not 3"):
        sample(pipe, "a bag", config=SampleConfig(solver=path, guidance_scale=3.0))
    other = replace(table, fingerprint="0" * 16).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="another network"):
        sample(pipe, "a bag", config=SampleConfig(solver=other))


def test_a_fingerprint_follows_the_weights_and_not_their_storage():
    pipe = tiny_sd()
    first = fingerprint(pipe.unet)
    assert fingerprint(pipe.unet.half().float()) == first
    with torch.no_grad():
        next(pipe.unet.parameters()).flatten()[0] += 1
    assert fingerprint(pipe.unet) != first
