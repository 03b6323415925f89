"""Presets keep the images of diffusers' schedulers: the same pipeline, weights, seeds and noise, other arithmetic."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from pipelines import STABLE_DIFFUSION, prompts_of, tiny_sd, tiny_sd3

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.solvers.presets import PRESETS
from logsnr.solvers.scheduler import SNRScheduler

TOLERANCE = 1e-5  # of the output's RMS; the most that was measured is 5e-6, by the network's own float32
EXACT = {"clip_sample": False, "set_alpha_to_one": True}
SDE = {"algorithm_type": "sde-dpmsolver++"}
# preset: settings of diffusers' scheduler, calls for n steps
STOCK: dict[str, tuple[dict[str, Any], str]] = {
    "dpm++2m": ({}, "n"),
    "dpm++2m-heun": ({"solver_type": "heun"}, "n"),
    "sde-dpm++": (SDE, "n"),
    "euler": ({}, "n"),
    "heun": ({}, "2n - 1"),
}


def made(pipe: Any, scheduler: Any, steps: int, **given: Any) -> tuple[torch.Tensor, int]:
    """The latents of two prompts, and how often the network was called."""
    network, calls = getattr(pipe, "unet", None) or pipe.transformer, []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    pipe.scheduler = scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 11)]
    arguments = {"num_inference_steps": steps, "guidance_scale": 2.0, "generator": generators, **given}
    latents = pipe(**prompts_of(pipe), output_type="latent", **arguments).images
    handle.remove()
    return latents, len(calls)


def assert_same(ours: torch.Tensor, stock: torch.Tensor) -> None:
    assert bool(stock.isfinite().all())
    assert (ours - stock).abs().max() <= TOLERANCE * stock.square().mean().sqrt()


@pytest.mark.parametrize(("prediction_type", "steps"), [("epsilon", 8), ("v_prediction", 7)])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("preset", STOCK)
def test_a_preset_keeps_the_images(preset: str, spacing: str, prediction_type: str, steps: int) -> None:
    pipe, (settings, calls) = tiny_sd(prediction_type), STOCK[preset]
    config, kind = pipe.scheduler.config, getattr(diffusers, PRESETS[preset].origin)
    stock = kind.from_config(config, timestep_spacing=spacing, **settings)
    ours = SNRScheduler.from_config(config, preset=preset, timestep_spacing=spacing)
    there, stock_calls = made(pipe, stock, steps)
    here, our_calls = made(pipe, ours, steps)
    assert_same(here, there)
    assert our_calls == stock_calls == {"n": steps, "2n - 1": 2 * steps - 1}[calls]
    assert float(ours.init_noise_sigma) == pytest.approx(1.0, rel=0.01)
    assert (ours.init_noise_sigma < 1) == (preset in ("euler", "heun") and spacing != "leading")


# At linspace spacing, or where the steps do not divide 1000, diffusers' DDIM steps by 1000 // n timesteps whatever the
# next one is; a grid is used as given here, so there is nothing to compare.
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 7), ("leading", 20), ("trailing", 8)])
@pytest.mark.parametrize("ends_clean", [True, False])
@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_ddim_is_rho_zero_at_eta_zero_and_rho_one_at_eta_one(
    spacing: str, steps: int, ends_clean: bool, rho: float
) -> None:
    pipe = tiny_sd()
    settings = {"timestep_spacing": spacing, "clip_sample": False, "set_alpha_to_one": ends_clean}
    stock = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **settings)
    ours = SNRScheduler.from_config(stock.config, preset="ddim", rho=rho)
    assert_same(made(pipe, ours, steps)[0], made(pipe, stock, steps, eta=rho)[0])


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize(("preset", "calls"), [("flow-euler", "n"), ("flow-heun", "2n - 1")])
def test_a_preset_keeps_the_images_of_a_flow_model(preset: str, calls: str, steps: int) -> None:
    pipe = tiny_sd3()
    config, kind = pipe.scheduler.config, getattr(diffusers, PRESETS[preset].origin)
    there, stock_calls = made(pipe, kind.from_config(config), steps)
    here, our_calls = made(pipe, SNRScheduler.from_config(config, preset=preset), steps)
    assert_same(here, there)
    assert our_calls == stock_calls == {"n": steps, "2n - 1": 2 * steps - 1}[calls]


def test_a_preset_converts_a_configuration_as_diffusers_does() -> None:
    """Defaults that nobody chose give way to those of the preset's scheduler: PNDM's leading spacing to linspace."""
    pipe, config = tiny_sd(), diffusers.PNDMScheduler(skip_prk_steps=True, **STABLE_DIFFUSION).config
    stock = diffusers.DPMSolverMultistepScheduler.from_config(config)
    assert (config.timestep_spacing, stock.config.timestep_spacing) == ("leading", "linspace")
    ours = SNRScheduler.from_config(config, preset="dpm++2m")
    assert_same(made(pipe, ours, 6)[0], made(pipe, stock, 6)[0])


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_the_sigma_options_of_a_scheduler_are_kept(kind: str, option: str) -> None:
    preset = {"D": "dpm++2m", "E": "euler", "H": "heun"}[kind[0]]
    pipe = tiny_sd()
    stock = getattr(diffusers, kind).from_config(pipe.scheduler.config, **{option: True})
    ours = SNRScheduler.from_config(stock.config, preset=preset)
    assert_same(made(pipe, ours, 6)[0], made(pipe, stock, 6)[0])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_solver_on_flow_sigmas_is_order_two(shift: float) -> None:
    pipe = tiny_sd3()
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    stock = diffusers.DPMSolverMultistepScheduler(**settings)
    assert_same(made(pipe, SNRScheduler.from_config(stock.config), 6)[0], made(pipe, stock, 6)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "nope"}, "no preset"),
        ({"preset": "heun", "rho": 0.5}, "solver of its own"),
        ({"preset": "ddim", "corrector": True}, "solver of its own"),
        ({"preset": "ddim", "solver_order": 3}, "its own solver_order"),
        ({"preset": "ddim", "table": {"log_snr": [-5.0, 0.0], "analytic": {"order": 2}}}, "solver of its own"),
        ({"eta": 0.3}, "setting 'eta'"),
    ],
)
def test_a_preset_is_not_mixed_with_another_solver(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SNRScheduler.from_config(tiny_sd().scheduler.config, **settings)


@pytest.mark.parametrize(("make", "preset"), [(tiny_sd3, "ddim"), (tiny_sd3, "heun"), (tiny_sd, "flow-heun")])
def test_a_preset_of_another_kind_of_network_is_refused(make: Any, preset: str) -> None:
    config = make().scheduler.config
    with pytest.raises(UnsupportedError, match="is not for"):
        SNRScheduler.from_config(config, preset=preset).set_timesteps(5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpm_solver_takes_over_a_flow_scheduler(shift: float) -> None:
    pipe = tiny_sd3()
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
    stock = diffusers.DPMSolverMultistepScheduler(**settings)
    ours = SNRScheduler.from_config(pipe.scheduler.config, preset="dpm++2m", flow_shift=shift)
    assert_same(made(pipe, ours, 6)[0], made(pipe, stock, 6)[0])
