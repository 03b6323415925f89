"""The scheduler's steps: those of its solver from any start, in any precision, within the limits of a configuration."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.families import scaled_linear
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.presets import PRESETS
from logsnr.solvers.sample import sample_steps
from logsnr.solvers.scheduler import SNRScheduler
from logsnr.solvers.table import load_table

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TABLE = {
    "log_snr": [-5.0, -2.0, 0.0, 2.0, 4.0],
    "coefficients": [[0.8, 0.2, 0, 0], [0.5, 0.6, -0.1, 0], [0.4, 0.8, -0.3, 0.1], [0.3, 0.8, -0.1, 0], [0, 1, 0, 0]],
}
SEEDS = [4, 9]


def clean(x: Tensor, sigma: float) -> Tensor:
    """A smooth estimate of x0 that depends on the sample and the level."""
    return torch.tanh(x) * (1 - 0.5 * sigma)


def network(scheduler: SNRScheduler, x: Tensor, index: int) -> Tensor:
    """What a network of the scheduler's kind says about that estimate at a visit."""
    at = scheduler._stops[index]
    x0 = clean(x.float(), at.sigma)
    eps = (x - at.alpha * x0) / at.sigma
    return {"x0": x0, "v": at.alpha * eps - at.sigma * x0, "flow": eps - x0}[scheduler.kind]


def run(scheduler: SNRScheduler, x: Tensor, begin: int = 0, *, set_begin: bool = True) -> Tensor:
    """From visit ``begin`` to the end, with the noise of the seeds."""
    scheduler.set_seeds(SEEDS[: len(x)])
    if begin and set_begin:
        scheduler.set_begin_index(begin)
    for index, t in list(enumerate(scheduler.timesteps))[begin:]:
        x = scheduler.step(network(scheduler, x, index).to(x.dtype), t, x, return_dict=False)[0]
    return x


def start(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 8, 8)), generator=torch.Generator().manual_seed(0))


def solved(solver: Any, levels: list[Level], x: Tensor) -> Tensor:
    """The same by the solver's own loop."""

    def denoiser(xt: Tensor, at: Level, cond: object = None) -> Prediction:
        x0 = clean(xt, at.sigma)
        return Prediction(x0, (xt - at.alpha * x0) / at.sigma)

    return list(sample_steps(denoiser, x, levels, solver, seeds=SEEDS[: len(x)]))[-1]


@pytest.mark.parametrize("corrector", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5, [0.0, 1.0, 0.5, 0.2, 0.1, 0.0, 0.0, 0.3], "bump"], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_steps_are_those_of_the_solver(order: int, rho: Any, corrector: bool) -> None:
    settings = {"solver_order": order, "rho": rho, "corrector": corrector, "variant": "heun", "grid": "tangent"}
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", **settings)
    scheduler.set_timesteps(8)
    expected = solved(Exponential(order, rho, "heun", corrector), scheduler.levels, start())
    torch.testing.assert_close(run(scheduler, start()), expected, rtol=1e-5, atol=1e-5)


def test_steps_are_those_of_a_table() -> None:
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", table=TABLE)
    scheduler.set_timesteps(5)
    expected = solved(load_table(TABLE).solver(), scheduler.levels, start())
    torch.testing.assert_close(run(scheduler, start()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("set_begin", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_run_from_its_middle_has_no_history(order: int, set_begin: bool) -> None:
    """A pipeline that sets no begin index is understood by the timestep of its first step."""
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", solver_order=order, grid="log-snr")
    scheduler.set_timesteps(10)
    expected = solved(Exponential(order, variant="midpoint"), scheduler.levels[4:], start())
    torch.testing.assert_close(run(scheduler, start(), 4, set_begin=set_begin), expected, rtol=1e-5, atol=1e-5)


def test_a_table_from_its_middle_begins_with_the_analytic_solver() -> None:
    """Its coefficients count on evaluations that are not there; from the third step on they are."""
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", table=TABLE)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(2)
    analytic = Exponential(2).weights(scheduler.levels[2], scheduler.levels[3], [(scheduler.levels[2], None)], 2)
    assert scheduler._visits[0].step == analytic
    assert scheduler._visits[2].step.values[0] == 1
    assert bool(run(scheduler, start(), 2).isfinite().all())


def test_a_new_run_forgets_the_last_one() -> None:
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", rho=0.5, grid="tangent")
    scheduler.set_timesteps(5)
    first = run(scheduler, start())
    scheduler.set_begin_index(3)
    scheduler.set_timesteps(5)
    assert (scheduler.begin_index, scheduler.step_index) == (None, None)
    assert torch.equal(run(scheduler, start()), first)
    with pytest.raises(InputError, match="no step left"):
        scheduler.step(start(), 0, start())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "flow_prediction", "sample"])
def test_infinite_noise_at_the_start_is_exact_in_every_precision(
    prediction_type: str, order: int, rho: float, dtype: torch.dtype
) -> None:
    config = {"prediction_type": prediction_type, "rescale_betas_zero_snr": prediction_type != "flow_prediction"}
    scheduler = SNRScheduler(**STABLE, **config, solver_order=order, rho=rho, grid="tangent")
    scheduler.set_timesteps(6)
    assert scheduler.levels[0].alpha == 0
    made = run(scheduler, start().to(dtype))
    assert made.dtype == dtype
    scheduler.set_timesteps(6)
    torch.testing.assert_close(made.float(), run(scheduler, start()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("preset", ["ddim", "dpm++2m", "heun"])
def test_an_output_with_a_learned_variance_is_cut(preset: str) -> None:
    ends = []
    for extra in (0, 4):
        scheduler = SNRScheduler(**STABLE, preset=preset)
        scheduler.set_timesteps(4)
        x = start()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.cat([0.3 * x, torch.ones(2, extra, 8, 8)], 1), t, x).prev_sample
        ends.append(x)
    assert torch.equal(*ends)


LIMITS = {
    "clipped": {"clip_sample": True, "clip_sample_range": 0.6},
    "thresholded": {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
}


@pytest.mark.parametrize(
    ("kind", "limit", "settings"),
    [
        ("DDPMScheduler", "clipped", {"preset": "ddim", "rho": 1.0}),
        ("DDPMScheduler", "thresholded", {"preset": "ddim", "rho": 1.0}),
        ("DPMSolverMultistepScheduler", "thresholded", {"preset": "dpm++2m"}),
        ("HeunDiscreteScheduler", "clipped", {"preset": "heun"}),
    ],
)
def test_clean_estimates_keep_the_limits_of_the_configuration(kind: str, limit: str, settings: dict) -> None:
    stock = getattr(diffusers, kind)(**STABLE, **LIMITS[limit], timestep_spacing="leading", steps_offset=1)
    ours, ends = SNRScheduler.from_config(stock.config, **settings), []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(8)
        x = 3 * start(1, 3, 8, 8)
        if kind == "HeunDiscreteScheduler":
            x = x * float(scheduler.init_noise_sigma)
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            generator = torch.Generator().manual_seed(int(t))
            given = {"generator": generator} if kind == "DDPMScheduler" else {}
            x = scheduler.step(torch.sin(3 * scaled), t, x, **given).prev_sample
        ends.append(x)
    assert (ends[0] - ends[1]).abs().max() <= 1e-5 * max(1.0, float(ends[0].abs().max()))


class Counted(TorchDispatchMode):
    """Counts the tensor operations inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("settings", "most"), [({}, 5), ({"clip_sample": True}, 6), ({"corrector": True}, 8)], ids=str)
def test_a_step_is_a_handful_of_tensor_operations(settings: dict, most: int) -> None:
    """The clean estimate takes two, a step one for each of its weights; a limit adds its own and nothing else."""
    scheduler = SNRScheduler(**STABLE, prediction_type="v_prediction", grid="tangent", **settings)
    scheduler.set_timesteps(6)
    x = output = start()
    for index, t in enumerate(scheduler.timesteps[:5]):
        with Counted() as counted:
            x = scheduler.step(output, t, x, return_dict=False)[0]
        assert counted.count == most or index < 2


def test_noise_of_a_seed_is_bit_identical_in_any_batch_and_order() -> None:
    made = {}
    for seeds in ([4, 8, 15, 16], [15], [16, 15]):
        scheduler = SNRScheduler(**STABLE, prediction_type="sample", rho=1.0, grid="tangent")
        scheduler.set_timesteps(3)
        scheduler.set_seeds(seeds)
        x = torch.zeros(len(seeds), 4, 8, 8)
        steps = []
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
            steps.append(x[seeds.index(15)])
        made[len(seeds)] = torch.stack(steps)
    assert torch.equal(made[4], made[1])
    assert torch.equal(made[4], made[2])
    assert not torch.equal(made[1][0], made[1][1])


@pytest.mark.parametrize("seeds", [[4, 8, 15, 16], [15], [16, 15]])
def test_brownian_noise_of_a_seed_is_bit_identical_in_any_batch_and_order(seeds: list[int]) -> None:
    found = []
    for rows in (seeds, [15]):
        scheduler = SNRScheduler(**STABLE, prediction_type="sample", rho=0.8, grid="log-snr", noise="brownian")
        scheduler.set_timesteps(6)
        scheduler.set_seeds(rows)
        x, steps = torch.zeros(2 * len(rows), 4, 8, 8), []  # a doubled batch, as under guidance
        for t in scheduler.timesteps:
            x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
            steps.append(x[[rows.index(15), rows.index(15) + len(rows)]])
        found.append(torch.stack(steps))
    assert torch.equal(*found)
    assert torch.equal(found[0][:, 0], found[0][:, 1])


def test_brownian_runs_of_any_number_of_steps_share_the_path() -> None:
    """Where the network always says 0 only noise tells: at equal levels it is the same, unlike independent noise."""
    ends = {}
    for noise in ("brownian", "independent"):
        for steps in (4, 7, 31):  # at equal steps in log-SNR the levels before the last share the grid's end
            scheduler = SNRScheduler(**STABLE, prediction_type="sample", rho=0.8, grid="log-snr", noise=noise)
            scheduler.set_timesteps(steps)
            scheduler.set_seeds(SEEDS)
            x = start()
            for t in scheduler.timesteps[:-1]:
                x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
            ends[noise, steps] = x / scheduler.levels[-2].sigma
    for steps in (4, 7):
        torch.testing.assert_close(ends["brownian", steps], ends["brownian", 31], rtol=1e-4, atol=1e-4)
        assert (ends["independent", steps] - ends["independent", 31]).std() > 0.5


def test_brownian_noise_takes_the_seeds_of_generators_or_asks_for_them() -> None:
    ends = []
    for seeds, given in (([], [torch.Generator().manual_seed(seed) for seed in SEEDS]), (SEEDS, None)):
        scheduler = SNRScheduler(**STABLE, rho=0.5, grid="tangent", noise="brownian")
        scheduler.set_timesteps(3)
        scheduler.set_seeds(seeds)
        ends.append(scheduler.step(start(), scheduler.timesteps[0], start(), generator=given).prev_sample)
    assert torch.equal(*ends)
    scheduler.set_seeds([])
    for given in (None, torch.Generator()):  # one generator for two samples names no path of the second
        scheduler.set_timesteps(3)
        with pytest.raises(InputError, match="call set_seeds, or pass one generator a sample"):
            scheduler.step(start(), scheduler.timesteps[0], start(), generator=given)
    alone = scheduler.step(start(1, 4), scheduler.timesteps[1], start(1, 4), generator=torch.Generator())
    assert bool(alone.prev_sample.isfinite().all())


SPACED = {"karras": "use_karras_sigmas", "log-snr": "use_exponential_sigmas", "beta": "use_beta_sigmas"}


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
@pytest.mark.parametrize("grid", SPACED)
def test_whole_timesteps_are_those_of_diffusers(grid: str, steps: int) -> None:
    """Karras' are rounded by diffusers as here; those of the others it cuts off. The levels are the same for all."""
    stock = diffusers.DPMSolverMultistepScheduler(**STABLE, **{SPACED[grid]: True})
    found = {}
    for whole in (True, False):
        ours = SNRScheduler(**STABLE, grid=grid, integer_timesteps=whole)
        for scheduler in (stock, ours):
            scheduler.set_timesteps(steps)
        torch.testing.assert_close(ours.sigmas, stock.sigmas, rtol=1e-4, atol=1e-6)
        found[whole] = ours.timesteps
    assert found[True].dtype == stock.timesteps.dtype
    assert torch.equal(found[False].round().long(), found[True])
    assert found[False].dtype == torch.float32
    if grid == "karras":
        assert torch.equal(found[True], stock.timesteps)
    else:
        assert (found[False] - stock.timesteps).abs().max() < 1.001


def test_a_network_of_whole_timesteps_makes_diffusers_images() -> None:
    """Under diffusers' Karras grid the network hears rounded times; to the exact ones it answers otherwise."""
    config, ends = {**STABLE, "prediction_type": "sample"}, {}
    stock = diffusers.DPMSolverMultistepScheduler(**config, use_karras_sigmas=True)
    for name in ("stock", "whole", "exact"):
        ours = SNRScheduler(**config, grid="karras", integer_timesteps=name == "whole")
        scheduler = stock if name == "stock" else ours
        scheduler.set_timesteps(12)
        x = start()
        for t in scheduler.timesteps:
            x = scheduler.step(torch.tanh(2 * x) * torch.cos(t / 3), t, x, return_dict=False)[0]
        ends[name] = x
    scale = float(ends["stock"].square().mean().sqrt())
    assert (ends["whole"] - ends["stock"]).abs().max() < 3e-5 * scale
    assert (ends["exact"] - ends["stock"]).abs().max() > 1e-3 * scale


def test_whole_timesteps_may_repeat_without_losing_a_step() -> None:
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    scheduler = SNRScheduler(**config, grid="karras", integer_timesteps=True)
    scheduler.set_timesteps(20)
    assert len(set(scheduler.timesteps.tolist())) < 20 == len(scheduler.timesteps)
    expected = solved(Exponential(2, variant="midpoint"), scheduler.levels, start())
    torch.testing.assert_close(run(scheduler, start()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("settings", "warned"), [({"grid": "karras"}, True), ({"grid": "tangent"}, False)])
@pytest.mark.parametrize("order", [2, 3])
def test_high_orders_on_few_steps_of_a_karras_grid_are_warned_of(settings: dict, warned: bool, order: int) -> None:
    for stock in (False, True):
        given = {"use_karras_sigmas": warned} if stock else settings
        origin = diffusers.DPMSolverMultistepScheduler(**STABLE).config
        scheduler = SNRScheduler.from_config(origin, solver_order=order, **given)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scheduler.set_timesteps(5)
            scheduler.set_timesteps(10)
        assert len([each for each in caught if "extrapolates far with 5" in str(each.message)]) == (
            warned and order == 3
        )


@pytest.mark.parametrize("name", ["ays-sd", "ays-sdxl"])
def test_published_levels_are_a_grid_of_stable_diffusion(name: str) -> None:
    scheduler = SNRScheduler(**STABLE, prediction_type="sample", grid=name)
    scheduler.set_timesteps(10)
    assert float(scheduler.sigmas[0]) == pytest.approx(14.615)
    assert scheduler.timesteps[0] == 999
    assert bool(run(scheduler, start()).isfinite().all())
    with pytest.raises(InputError, match="no levels for this model"):
        SNRScheduler(grid=name).set_timesteps(10)


def test_seeds_must_fit_the_batch() -> None:
    scheduler = SNRScheduler(**STABLE, rho=1.0)
    scheduler.set_timesteps(3)
    scheduler.set_seeds([1, 2])
    with pytest.raises(InputError, match="2 seeds do not fit a batch of 3"):
        scheduler.step(start(3, 1), scheduler.timesteps[0], start(3, 1))


def test_noise_is_added_where_the_run_stands_and_elsewhere_by_the_schedule() -> None:
    """On a grid of its own a rounded timestep would name another level."""
    scheduler, x, noise = SNRScheduler(**STABLE, grid="karras"), start(2, 4), start(2, 4).flip(0)
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(3)
    for index in (3, 4):
        at, t = scheduler.levels[index], scheduler.timesteps[index : index + 1]
        assert torch.equal(scheduler.add_noise(x, noise, t), at.alpha * x + at.sigma * noise)
        scheduler.step(noise, t[0], x)
    at = [scaled_linear().level((k + 1) / 1000) for k in (17, 940)]
    expected = torch.stack([level.alpha * x[row] + level.sigma * noise[row] for row, level in enumerate(at)])
    torch.testing.assert_close(scheduler.add_noise(x, noise, torch.tensor([17, 940])), expected)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_training_targets_are_those_of_diffusers(kind: str) -> None:
    stock, x, noise = getattr(diffusers, kind)(**STABLE), start(3, 4, 2, 2), start(3, 4, 2, 2).flip(0)
    ours, t = SNRScheduler.from_config(stock.config), torch.tensor([0, 500, 999])
    torch.testing.assert_close(ours.add_noise(x, noise, t), stock.add_noise(x, noise, t))
    torch.testing.assert_close(ours.get_velocity(x, noise, t), stock.get_velocity(x, noise, t))
    half = ours.add_noise(x.half(), noise.half(), t)
    assert half.dtype == torch.float16


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_same_built_directly_converted_or_loaded(preset: str, tmp_path: Path) -> None:
    direct, own = SNRScheduler(preset=preset), PRESETS[preset]
    direct.save_pretrained(tmp_path)
    converted = SNRScheduler.from_config(diffusers.DDIMScheduler().config, preset=preset)
    for scheduler in (
        direct,
        converted,
        SNRScheduler.from_config(direct.config),
        SNRScheduler.from_pretrained(tmp_path),
    ):
        solver = scheduler.solver
        assert (solver.order, solver.variant, solver.rho, scheduler.config.rho) == (
            own.order,
            own.variant,
            own.rho,
            own.rho,
        )
    assert SNRScheduler(preset="sde-dpm++", rho=0.0).solver.rho == 0
    assert SNRScheduler(rho=0.4).config.rho == 0.4
    assert SNRScheduler.from_config(SNRScheduler(preset="sde-dpm++").config, preset="dpm++2m").solver.rho == 0


def test_the_order_has_two_names() -> None:
    """That of ``SampleConfig``, and in configurations diffusers' own."""
    config = diffusers.DDIMScheduler().config
    scheduler = SNRScheduler.from_config(config, order=3, rho=0.3)
    assert scheduler.solver == SNRScheduler.from_config(config, solver_order=3, rho=0.3).solver
    assert (scheduler.solver.order, scheduler.config.solver_order, scheduler.order) == (3, 3, 1)
    with pytest.raises(InputError, match="one setting under two names"):
        SNRScheduler.from_config(config, order=3, solver_order=3)


@pytest.mark.parametrize(
    ("own", "settings"),
    [
        ({"preset": "ddim"}, {"solver_order": 3}),
        ({"preset": "ddim"}, {"order": 2}),
        ({"preset": "dpm++2m"}, {"variant": "heun"}),
        ({"table": TABLE}, {"solver_order": 2}),
        ({"table": TABLE}, {"grid": "karras"}),
        ({"table": TABLE}, {"variant": "heun", "grid": "time"}),
    ],
    ids=str,
)
def test_what_would_not_be_followed_is_refused(own: dict[str, Any], settings: dict[str, Any]) -> None:
    """Beside a preset or a table that is given too, or that the configuration has; but it may be there from before."""
    beside = " and ".join("solver_order" if name == "order" else name for name in settings)
    message = f"has its own {beside}: drop {beside}, or what brings it"
    config = diffusers.DPMSolverMultistepScheduler(solver_order=3).config
    for before, given in ((config, own | settings), (SNRScheduler(**own).config, settings)):
        with pytest.raises(InputError, match=message):
            SNRScheduler.from_config(before, **given)
    if "order" not in settings:
        with pytest.raises(InputError, match=message):
            SNRScheduler(**own, **settings)
        assert SNRScheduler.from_config(SNRScheduler(**settings).config, **own)
    assert SNRScheduler.from_config(config, **own).config.solver_order == 3


def test_levels_may_be_given_explicitly() -> None:
    scheduler = SNRScheduler(**STABLE)
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.timesteps.tolist() == [900, 500, 100]
    scheduler.set_timesteps(sigmas=[10.0, 3.0, 0.5, 0.0])
    assert scheduler.sigmas.tolist() == pytest.approx([10, 3, 0.5, 0])
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 3


@pytest.mark.parametrize(
    ("stock", "last"),
    [(diffusers.DDIMScheduler(), 999.0), (diffusers.EDMEulerScheduler(sigma_max=60.0), math.log(60) / 4)],
    ids=lambda value: type(value).__name__,
)
def test_levels_outside_the_trained_range_are_warned_of_and_told_as_its_end(stock: Any, last: float) -> None:
    scheduler = SNRScheduler.from_config(stock.config)
    with pytest.warns(UserWarning, match=r"log-SNR -12.4\d is outside the range .*: it is told the end of that range"):
        scheduler.set_timesteps(sigmas=[500.0, 20.0, 1.0])
    assert float(scheduler.timesteps[0]) == pytest.approx(last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.set_timesteps(sigmas=[20.0, 1.0])
        for steps in (1, 3, 20):
            scheduler.set_timesteps(steps)


@pytest.mark.parametrize(
    "stock",
    [
        diffusers.EDMEulerScheduler(sigma_max=80.0),
        diffusers.EDMDPMSolverMultistepScheduler(sigma_max=60.0, sigma_data=0.7),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.DDIMScheduler(timestep_spacing="trailing"),
    ],
    ids=lambda stock: type(stock).__name__,
)
def test_timesteps_of_a_run_lead_to_its_levels(stock: Any) -> None:
    """The first too, where the noise of EDM's networks has its end."""
    scheduler = SNRScheduler.from_config(stock.config)
    scheduler.set_timesteps(7)
    levels, times = scheduler.levels, scheduler.timesteps
    for given in (times, times.tolist()):
        scheduler.set_timesteps(timesteps=given)
        assert torch.allclose(scheduler.timesteps.double(), times.double(), rtol=1e-6)
        for mine, own in zip(scheduler.levels, levels, strict=True):
            assert mine.alpha == pytest.approx(own.alpha, rel=1e-4, abs=1e-7)
            assert mine.sigma == pytest.approx(own.sigma, rel=1e-4)
    with pytest.raises(InputError, match="fall strictly"):
        scheduler.set_timesteps(timesteps=times.tolist()[::-1])


def test_pipelines_find_the_members_that_they_look_for() -> None:
    scheduler = SNRScheduler()
    assert list(inspect.signature(scheduler.step).parameters)[:3] == ["model_output", "timestep", "sample"]
    assert "eta" not in inspect.signature(scheduler.step).parameters  # pipelines would pass their own
    assert (scheduler.order, SNRScheduler(preset="heun").order) == (1, 2)
    assert (scheduler.config.steps_offset, scheduler.config.clip_sample, len(scheduler)) == (1, False, 1000)
    assert scheduler.compatibles


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": [0.5, 0.5]}, "rho lists 2 values for 5 steps"),
        ({"table": TABLE, "rho": 0.5}, "a solver table is a solver of its own"),
        ({"rho": lambda ratio: ratio}, "rho cannot be a function"),
        ({"preset": "odd"}, "no preset 'odd'"),
        ({"noise": "odd"}, "no noise 'odd'"),
        ({"table": {"levels": []}}, "no solver table"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SNRScheduler(**STABLE, **settings).set_timesteps(5)
