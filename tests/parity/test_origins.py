"""Every scheduler of diffusers is read or refused with a reason, and its settings survive the way there and back."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from pipelines import STABLE_DIFFUSION

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.schedules.scheduler_config import origin_of, parameters
from logsnr.solvers.scheduler import SNRScheduler

REFUSED = {
    "BlockRefinementScheduler": "no betas and no flow",
    "CMStochasticIterativeScheduler": "sigmas instead of betas",
    "DDIMInverseScheduler": "goes from data to noise",
    "DDPMWuerstchenScheduler": "no betas and no flow",
    "DPMSolverMultistepInverseScheduler": "goes from data to noise",
    "DiscreteDDIMScheduler": "no betas and no flow",
    "EDMDPMSolverMultistepScheduler": "sigmas instead of betas",
    "EDMEulerScheduler": "sigmas instead of betas",
    "EntropyBoundScheduler": "no betas and no flow",
    "FlowMapEulerDiscreteScheduler": "maps between two times",
    "HeliosDMDScheduler": "stages of several resolutions",
    "HeliosScheduler": "stages of several resolutions",
    "IPNDMScheduler": "no betas and no flow",
    "KarrasVeScheduler": "sigmas instead of betas",
    "LTXEulerAncestralRFScheduler": "no betas and no flow",
    "MiniMaxH3Scheduler": "points to the data",
    "PiflowScheduler": "several predictions at once",
    "SCMScheduler": "sigmas instead of betas",
    "ScoreSdeVeScheduler": "sigmas instead of betas",
}
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


def run(scheduler: SNRScheduler, steps: int = 7) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.3 * x, t, x, return_dict=False)[0]
    return x


def test_there_are_schedulers_to_read() -> None:
    assert len(READ) >= 25
    assert set(REFUSED) <= set(ALL)


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
def test_another_scheduler_is_refused_with_what_cannot_be_honoured(name: str) -> None:
    with pytest.raises(UnsupportedError, match=REFUSED[name]):
        SNRScheduler.from_config({**ALL[name].config, "_class_name": name}).set_timesteps(7)
    if name != "FlowMapEulerDiscreteScheduler":  # the twin of a class that is read
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
    back = kind.from_config(ours.config).config
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
