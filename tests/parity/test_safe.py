"""Safe guidance against diffusers' own, and the same whatever a network predicts."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.deprecated.stable_diffusion_safe.pipeline_stable_diffusion_safe import (
    StableDiffusionPipelineSafe,
)
from pipelines import tiny_flux_with_text, tiny_sd
from torch import Tensor

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level
from logsnr.models.denoiser import Conditioning, NetworkDenoiser
from logsnr.models.guidance import SAFE, SafeGuidance
from logsnr.models.pipeline import denoiser_of
from logsnr.schedules.families import scaled_linear
from logsnr.schedules.prediction import Kind, output_of, predict
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample

STEPS = 50
LEVELS = [scaled_linear().level(1 - step / STEPS) for step in range(STEPS)]


def outputs(step: int) -> Tensor:
    """Noise for no prompt, the prompt and the concept (3, 2, 4, 8, 8), of sizes about all thresholds."""
    draws = torch.Generator().manual_seed(step)
    sizes = torch.tensor([1e-4, 1e-3, 1e-2, 1.0]).view(4, 1, 1)
    return torch.randn(2, 4, 8, 8, generator=draws) + sizes * torch.randn(3, 2, 4, 8, 8, generator=draws)


@pytest.mark.parametrize("name", SAFE)
def test_it_is_what_diffusers_does_step_by_step(name: str) -> None:
    constants, ours, momentum = SAFE[name], SafeGuidance(SAFE[name]), None
    for step, level in enumerate(LEVELS):
        without, given, avoided = outputs(step)
        # after "None", which stands for the pipeline: enabled
        theirs, momentum = StableDiffusionPipelineSafe.perform_safety_guidance(
            None,
            True,
            momentum,
            given - without,
            (given, without, avoided),
            step,
            constants.scale,
            round(50 * constants.warmup),
            constants.threshold,
            constants.momentum,
            constants.decay,
        )
        found = given - without - ours.avoid(without, given, avoided, level)
        torch.testing.assert_close(found, theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow"])
def test_networks_that_say_the_same_noise_are_guided_alike(kind: Kind) -> None:
    """The whole run, with its momentum, in units of noise: what a network predicts is only its form."""
    xt, place = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7)), 0

    def network(kind: Kind, x: Tensor, level: Level) -> Tensor:
        told = outputs(place).flatten(0, 1)
        return output_of(kind, predict("eps", x, told, level), level)

    def run(kind: Kind) -> list[Tensor]:
        nonlocal place
        made = NetworkDenoiser(
            lambda x, _timestep, **_cond: network(kind, x, level),
            scaled_linear(),
            kind,
            lambda at: at.t,
            guidance_scale=3.0,
            safe=SafeGuidance(SAFE["strong"]),
        )
        row = {"text": torch.zeros(2, 1)}
        cond, found = Conditioning(row, row, row), []
        for place, level in enumerate(LEVELS[:-5:5]):  # noqa: B007 - the network reads both
            found.append(made(xt, level, cond).eps)
        assert made.network_evaluations == 3 * 2 * len(found)
        return found

    for ours, theirs in zip(run(kind), run("eps"), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)


def test_a_seed_gives_the_same_image_in_any_batch() -> None:
    """Momentum starts anew with every batch."""
    config = SampleConfig(steps=4, safe="max", negative="the small boot", guidance_scale=4.0)
    seeds = range(30, 34)  # of others a difference lies at the threshold, where rounding by batch decides
    whole = sample(tiny_sd(), "a photo of a bag", seeds=seeds, config=config)
    parts = sample(tiny_sd(), "a photo of a bag", seeds=seeds, config=config, batch_size=1)
    plain = sample(tiny_sd(), "a photo of a bag", seeds=seeds, config=SampleConfig(steps=4, guidance_scale=4.0))
    torch.testing.assert_close(whole.latents, parts.latents, atol=1e-4, rtol=1e-4)
    assert (whole.latents - plain.latents).abs().max() > 1e-4
    assert whole.network_evaluations == 3 * 4 * 4


@pytest.mark.parametrize("given", [{"negative": ""}, {"negative": "a bag", "guidance_scale": 1.0}])
def test_it_needs_a_concept_and_guidance(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match="safe guidance needs a negative prompt"):
        SampleConfig(safe="weak", **given)


def test_a_network_that_guides_itself_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="cannot keep away"):
        denoiser_of(tiny_flux_with_text(distilled=True), guidance_scale=3.0, safe=SafeGuidance(SAFE["weak"]))
