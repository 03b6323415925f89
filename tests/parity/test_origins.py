"""Every scheduler of diffusers is read or refused with a reason, and its settings survive the way there and back."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from pipelines import STABLE_DIFFUSION

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.schedules.origins import is_flow, origin_of, parameters
from logsnr.schedules.scheduler_config import from_scheduler_config
from logsnr.solvers.scheduler import SNRScheduler

REFUSED = {
    "AmusedScheduler": "predicts tokens",
    "BlockRefinementScheduler": "predicts tokens",
    "CMStochasticIterativeScheduler": "consistency model",
    "CosineDPMSolverMultistepScheduler": "told an angle",
    "DDIMInverseScheduler": "goes from data to noise",
    "DDPMWuerstchenScheduler": "told the time itself",
    "DPMSolverMultistepInverseScheduler": "goes from data to noise",
    "DiscreteDDIMScheduler": "predicts tokens",
    "EntropyBoundScheduler": "predicts tokens",
    "FlowMapEulerDiscreteScheduler": "maps between two times",
    "HeliosDMDScheduler": "stages of several resolutions",
    "HeliosScheduler": "stages of several resolutions",
    "IPNDMScheduler": "told an angle",
    "KarrasVeScheduler": "rules of its own",
    "MiniMaxH3Scheduler": "points to the data",
    "PiflowScheduler": "several predictions at once",
    "RFD4ProteinaScheduler": "two coupled kinds of data",
    "SCMScheduler": "consistency model",
    "ScoreSdeVeScheduler": "says a score",
    "VQDiffusionScheduler": "predicts tokens",
}
NOT_MADE = ("DPMSolverSDEScheduler",)  # read, but needs a package that is not there to visit its levels
# Classes with one and the same constructor: a live configuration does not tell them apart, a file does.
TWINS = (
    {"CogVideoXDDIM", "CogVideoXDPM"},
    {"DDIM", "DDIMParallel"},
    {"DDPM", "DDPMParallel"},
    {"FlowMatchHeunDiscrete", "FlowMapEulerDiscrete"},
    {"KDPM2Discrete", "KDPM2AncestralDiscrete"},
    {"LCM", "TCD"},
)


def constructed() -> dict[str, Any]:
    """Every scheduler of diffusers that needs no arguments and no further package."""
    found = {}
    for name in sorted(name for name in dir(diffusers) if name.endswith("Scheduler")):
        try:
            found[name] = getattr(diffusers, name)()
        except (TypeError, ImportError):
            continue
    return found


ALL = constructed()
READ = [name for name in ALL if name not in REFUSED]
EDM = [name for name in ALL if name.startswith("EDM")]


def run(scheduler: SNRScheduler, steps: int = 7) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * x, t, x, return_dict=False)[0]
    return x


def test_every_scheduler_of_diffusers_is_read_or_refused() -> None:
    exported = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert exported == {*READ, *REFUSED, *NOT_MADE}
    assert (len(READ), len(REFUSED)) == (28, 20)


def own_noise(stock: Any, steps: int) -> list[float]:
    """sigma / alpha of the levels that a scheduler visits by its own account, noisiest first, each once."""
    stock.set_timesteps(steps)
    sigmas = getattr(stock, "sigmas", None)
    if sigmas is None or len(sigmas) < len(stock.timesteps):
        kept = stock.alphas_cumprod.double()[stock.timesteps.long()]
        sigmas = ((1 - kept) / kept).sqrt()
    elif is_flow(stock.config):
        sigmas = sigmas.double() / (1 - sigmas.double())
    return sorted({float(sigma) for sigma in sigmas if sigma > 0}, reverse=True)


@pytest.mark.parametrize("name", READ)
def test_the_levels_of_a_scheduler_are_its_own(name: str) -> None:
    stock = type(ALL[name]).from_config(ALL[name].config, **({"skip_prk_steps": True} if "PNDM" in name else {}))
    ours = SNRScheduler.from_config(stock.config)
    for steps in (5, 8):
        ours.set_timesteps(steps)
        found = [level.sigma / level.alpha if level.alpha else float("inf") for level in ours.levels if level.sigma]
        assert found == pytest.approx(own_noise(stock, steps), rel=1e-4), steps


@pytest.mark.parametrize("name", READ)
def test_a_scheduler_with_betas_or_flow_is_read(name: str) -> None:
    scheduler = SNRScheduler.from_config(ALL[name].config)
    assert bool(run(scheduler).isfinite().all())
    assert len(scheduler.levels) == 8
    short = name.removesuffix("Scheduler")
    assert scheduler.config.origin.removesuffix("Scheduler") in next(
        (twins for twins in TWINS if short in twins), {short}
    )


@pytest.mark.parametrize("name", REFUSED)
def test_another_scheduler_is_refused_by_name_with_what_cannot_be_honoured(name: str) -> None:
    config = ALL[name].config if name in ALL else {}
    with pytest.raises(UnsupportedError, match=f"{name} .*{REFUSED[name]}.*: (keep it|use a scheduler)"):
        SNRScheduler.from_config({**config, "_class_name": name}).set_timesteps(7)
    if name in ALL and name != "FlowMapEulerDiscreteScheduler":  # the twin of a class that is read
        with pytest.raises(UnsupportedError, match=REFUSED[name]):
            SNRScheduler.from_config(ALL[name].config).set_timesteps(7)


@pytest.mark.parametrize(
    "settings",
    [{}, {"grid": "tangent", "rho": 0.4, "solver_order": 2}, {"preset": "ddim"}, {"preset": "flow-heun"}],
    ids=["plain", "own grid", "ddim", "flow-heun"],
)
@pytest.mark.parametrize("name", READ)
def test_switching_back_keeps_the_settings(name: str, settings: dict[str, Any]) -> None:
    kind, config = type(ALL[name]), ALL[name].config
    ours = SNRScheduler.from_config(config, **settings)
    own_rho = {"rho": config["rho"]} if name in EDM and settings else {}  # of EDM's grid: one name, two meanings
    back = kind.from_config(ours.config, **own_rho).config
    kept = {option: back[option] for option in parameters(kind) if option not in settings}
    assert kept == {option: config[option] for option in kept}


def test_switching_back_keeps_chosen_settings_through_a_file(tmp_path: Any) -> None:
    chosen = {"timestep_spacing": "trailing", "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    stock = diffusers.DPMSolverMultistepScheduler(**STABLE_DIFFUSION, **chosen, solver_order=3)
    SNRScheduler.from_config(stock.config, preset="euler", rho=0.3).save_pretrained(tmp_path)
    ours = SNRScheduler.from_pretrained(tmp_path)
    assert (ours.config.origin, ours.config.preset, ours.solver.rho) == ("DPMSolverMultistepScheduler", "euler", 0.3)
    assert ours.solver.order == 1
    back = diffusers.DPMSolverMultistepScheduler.from_config(ours.config)
    assert {name: back.config[name] for name in parameters(type(stock))} == {
        name: stock.config[name] for name in parameters(type(stock))
    }


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "LCMScheduler", "CogVideoXDDIMScheduler"])
def test_the_betas_that_a_class_has_by_default_are_those_of_the_network(name: str) -> None:
    """Diffusers would drop them when the configuration changes class."""
    for settings in ({}, {"preset": "euler"}):
        ours = SNRScheduler.from_config(ALL[name].config, **settings)
        times = torch.arange(1, 1001, dtype=torch.float64) / 1000
        torch.testing.assert_close(
            ours.schedule.alpha(times) ** 2, ALL[name].alphas_cumprod.double(), rtol=1e-4, atol=1e-6
        )


def test_the_class_of_a_live_configuration_is_the_one_that_it_was_made_for() -> None:
    euler = diffusers.EulerDiscreteScheduler(**STABLE_DIFFUSION)
    config = diffusers.DPMSolverMultistepScheduler.from_config(euler.config).config
    assert origin_of(config) == "DPMSolverMultistepScheduler"
    assert origin_of(diffusers.EulerDiscreteScheduler.from_config(config).config) == "EulerDiscreteScheduler"
    assert origin_of(SNRScheduler.from_config(config).config) == "SNRScheduler"
    assert origin_of({"beta_schedule": "linear"}) == ""


@pytest.mark.parametrize("name", READ)
def test_a_scheduler_is_read_without_a_word(name: str, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Converted, changed, saved and loaded: what only the former class has is kept, and nobody is warned of it."""
    ours = SNRScheduler.from_config(ALL[name].config, grid="tangent")
    ours.save_pretrained(tmp_path)
    changed, loaded = SNRScheduler.from_config(ours.config, rho=0.5), SNRScheduler.from_pretrained(tmp_path)
    kept = {option for option in parameters(type(ALL[name])) if option != "rho"}
    for scheduler in (changed, loaded):
        assert {option: scheduler.config[option] for option in kept} == {option: ours.config[option] for option in kept}
    assert "were passed to" not in caplog.text
    type(ALL[name]).from_config(ours.config)  # diffusers' own classes do say that they do not know ours
    assert "were passed to" in caplog.text


def test_settings_of_an_earlier_conversion_are_not_taken_up_again() -> None:
    first = SNRScheduler.from_config(ALL["DDIMScheduler"].config, rho=0.5, grid="tangent")
    between = diffusers.DPMSolverMultistepScheduler.from_config(first.config)
    again = SNRScheduler.from_config(between.config)
    assert (again.config.rho, again.config.grid) == (0.0, "scheduler")
    assert again.config.origin == "DPMSolverMultistepScheduler"
    kept = SNRScheduler.from_config(first.config, grid="karras")
    assert (kept.config.rho, kept.config.grid, kept.config.origin) == (0.5, "karras", "DDIMScheduler")


def test_settings_of_the_former_class_can_be_changed_on_the_way() -> None:
    config = ALL["EulerDiscreteScheduler"].config
    changed = SNRScheduler.from_config(config, timestep_spacing="trailing", use_karras_sigmas=True)
    stock = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing", use_karras_sigmas=True)
    for scheduler in (changed, stock):
        scheduler.set_timesteps(6)
    assert torch.allclose(changed.timesteps.double(), stock.timesteps.double(), atol=1e-3)
    assert torch.allclose(changed.sigmas, stock.sigmas, rtol=1e-6)
    with pytest.raises(InputError, match="'use_flow'"):
        SNRScheduler.from_config(config, use_flow=True)


def test_a_pipeline_may_correct_the_offset_afterwards() -> None:
    """Stable Diffusion's pipeline sets steps_offset to 1 in the configuration of a scheduler that has 0."""
    stock = diffusers.DDIMScheduler(clip_sample=False)
    ours = SNRScheduler.from_config(stock.config)
    for scheduler in (stock, ours):
        scheduler._internal_dict = type(scheduler.config)({**scheduler.config, "steps_offset": 1})
        scheduler.set_timesteps(10)
    assert ours.timesteps.tolist() == stock.timesteps.tolist()


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "NoSuchScheduler"])
def test_a_scheduler_that_cannot_be_made_asks_for_a_grid(name: str) -> None:
    config = {"_class_name": name, **STABLE_DIFFUSION}
    with pytest.raises(UnsupportedError, match="grid"):
        SNRScheduler.from_config(config).set_timesteps(5)
    assert bool(run(SNRScheduler.from_config(config, grid="tangent")).isfinite().all())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("name", EDM)
def test_a_network_with_edms_preconditioning_makes_the_same_images(
    name: str, sigma_schedule: str, prediction_type: str, tmp_path: Any
) -> None:
    """Its input is scaled and its output read as diffusers does, through a file too, for data of any deviation."""
    settings = {"sigma_data": 0.7, "rho": 6.0, "sigma_max": 60.0}
    stock = type(ALL[name])(**settings, sigma_schedule=sigma_schedule, prediction_type=prediction_type)
    order = {"EDMEulerScheduler": 1, "EDMDPMSolverMultistepScheduler": 2}[name]
    SNRScheduler.from_config(stock.config, solver_order=order).save_pretrained(tmp_path)
    ours, ends = SNRScheduler.from_pretrained(tmp_path), []
    assert (ours.config.grid_exponent, ours.config.rho, ours.config.origin) == (6.0, 0.0, name)
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for scheduler in (stock, ours):
        scheduler.set_timesteps(9)
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tanh(1.5 * seen) * (0.6 - 0.2 * t), t, x, return_dict=False)[0]
        ends.append(x)
    assert (ends[0] - ends[1]).abs().max() <= 1e-5 * ends[0].square().mean().sqrt()


def test_the_exponent_of_edms_grid_and_the_noise_multiplier_share_a_name_and_nothing_else() -> None:
    """Switching back asks for EDM's own rho; conversions there and back never mix the two up."""
    stock = diffusers.EDMEulerScheduler(rho=5.0)
    ours = SNRScheduler.from_config(stock.config, rho=0.5)
    assert (ours.config.rho, ours.config.grid_exponent, ours.schedule.base.exponent) == (0.5, 5.0, 5.0)
    back = diffusers.EDMEulerScheduler.from_config(ours.config, rho=6.0)
    assert from_scheduler_config(back.config).base.exponent == 6.0
    again = SNRScheduler.from_config(back.config)
    assert (again.config.rho, again.config.grid_exponent) == (0.0, 6.0)
    own = SNRScheduler.from_config(stock.config, grid="karras")
    for scheduler in (own, stock):
        scheduler.set_timesteps(6)
    # the grid karras ends at t = 0.001, EDM's own at 0
    roots = own.sigmas[:-1].double() ** 0.2
    assert torch.allclose(roots.diff(), roots.diff()[0], rtol=1e-5)
    assert float(own.sigmas[0]) == pytest.approx(float(stock.sigmas[0]), rel=1e-6)


def test_other_settings_go_with_edms_preconditioning() -> None:
    ours = SNRScheduler.from_config(ALL["EDMEulerScheduler"].config, grid="tangent", rho=0.5, noise="brownian")
    ours.set_seeds([1, 2])
    assert bool(run(ours).isfinite().all())
    assert ours.levels[0].sigma / ours.levels[0].alpha == pytest.approx(80)
    x = torch.ones(2, 3)
    at = ours.levels[0]
    assert torch.allclose(ours.add_noise(x, -x, ours.timesteps[:1]), (at.alpha - at.sigma) * x)
    for settings, message in (({"preset": "dpm++2m"}, "is not for networks with EDM's"), ({}, "no whole timesteps")):
        chosen = settings or {"integer_timesteps": True}
        with pytest.raises((UnsupportedError, InputError), match=message):
            SNRScheduler.from_config(ALL["EDMEulerScheduler"].config, **chosen).set_timesteps(5)
