"""``SNRScheduler`` in a modular pipeline of diffusers, where guidance is a component of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusionXLAutoBlocks
from pipelines import tiny_sdxl

from logsnr.solvers.scheduler import SNRScheduler

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
GUIDERS = {
    "classifier-free": lambda: ClassifierFreeGuidance(guidance_scale=3.0),
    "projected": lambda: AdaptiveProjectedGuidance(
        guidance_scale=3.0, eta=0.3, adaptive_projected_guidance_momentum=-0.5, adaptive_projected_guidance_rescale=2.0
    ),
}


def made(guider: Any, settings: dict[str, Any] | None, **given: Any) -> torch.Tensor:
    """Latents under a guider, with the pipeline's own scheduler or with ours under these settings."""
    base, pipe = tiny_sdxl(), StableDiffusionXLAutoBlocks().init_pipeline()
    config = base.scheduler.config
    scheduler = base.scheduler if settings is None else SNRScheduler.from_config(config, **settings)
    pipe.update_components(**{name: getattr(base, name) for name in PARTS}, guider=guider, scheduler=scheduler)
    arguments = {
        "prompt": ["a bag", "a dark sneaker"],
        "negative_prompt": ["running shoe", "a"],
        "num_inference_steps": 5,
    }
    generator = [torch.Generator().manual_seed(seed) for seed in (3, 11)]
    return pipe(**{**arguments, "generator": generator, **given}, height=16, width=16, output="latents")


@pytest.mark.parametrize("name", GUIDERS)
def test_a_preset_keeps_the_images_of_a_guided_modular_pipeline(name: str) -> None:
    stock, ours = (made(GUIDERS[name](), settings) for settings in (None, {"preset": "euler"}))
    assert (ours - stock).abs().max() <= 1e-5 * stock.square().mean().sqrt()


def test_the_guiders_differ() -> None:
    first, second = (made(GUIDERS[name](), {}) for name in GUIDERS)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{"grid": "tangent", "rho": 0.5}, {"grid": "karras", "corrector": True}])
@pytest.mark.parametrize("name", GUIDERS)
def test_a_modular_pipeline_runs_on_any_grid(name: str, settings: dict[str, Any]) -> None:
    assert bool(made(GUIDERS[name](), settings).isfinite().all())


def test_a_modular_image_to_image_starts_late() -> None:
    image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    stock, ours = (
        made(
            ClassifierFreeGuidance(guidance_scale=3.0),
            settings,
            image=image,
            strength=0.6,
            generator=torch.Generator().manual_seed(3),
        )
        for settings in (None, {"preset": "euler"})
    )
    assert (ours - stock).abs().max() <= 1e-5 * stock.square().mean().sqrt()
