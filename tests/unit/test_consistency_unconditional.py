"""Consistency models of latents without a condition: statistics of elements, training, and a folder that comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from logsnr.consistency.config import consistency_preset
from logsnr.consistency.unconditional import Elements, LatentPipeline, small_unet, train_unconditional
from logsnr.core.errors import InputError, MissingError
from logsnr.core.steps import finish
from logsnr.train.config import FitConfig

SHAPE = (4, 8, 8)
RUN = FitConfig(steps=14, batch_size=8, warmup=0, clip=None, cpu=True)


def latents(num: int = 64) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    scales = 1 + torch.rand(SHAPE, generator=draws)
    return 3 * torch.rand(SHAPE, generator=draws) + scales * torch.randn(num, *SHAPE, generator=draws)


def test_every_element_has_its_own_statistics() -> None:
    given = latents()
    elements = Elements.of(given)
    seen = elements.seen(given)
    torch.testing.assert_close(seen.mean(0), torch.zeros(SHAPE), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.full(SHAPE, 0.5))
    torch.testing.assert_close(elements.restored(seen), given)
    given[:, 1, 2, 3] = 7.0
    with pytest.warns(UserWarning, match="1 elements"):
        still = Elements.of(given)
    assert (still.floored, float(still.std[1, 2, 3])) == (1, pytest.approx(1e-4))
    torch.testing.assert_close(still.restored(still.seen(given)), given)


@pytest.mark.parametrize("norm", ["keep", "nsln", "nsln-channel"])
def test_what_was_trained_comes_back_bit_by_bit(norm: str, tmp_path: Path) -> None:
    config = consistency_preset("slct", norm=norm, run=RUN)
    trained = finish(train_unconditional(latents(), config))
    trained.set_progress_bar_config(disable=True)
    trained.save_pretrained(tmp_path / "a")
    again = LatentPipeline.from_pretrained(tmp_path / "a")
    again.set_progress_bar_config(disable=True)
    for calls in (1, 2):
        options = {"num_inference_steps": calls, "output_type": "latent"}
        made, same = (
            pipe(3, generator=torch.Generator().manual_seed(5), **options).images for pipe in (trained, again)
        )
        assert torch.equal(made, same)
        assert made.shape == (3, *SHAPE)
    assert again.scheduler.config.middle_sigmas == [[0.37]]
    groups = [type(module).__name__ for module in again.unet.modules() if "Norm" in type(module).__name__]
    assert ("GroupNorm" in groups) == (norm == "keep")
    assert ("NonScalingLayerNorm" in groups) == (norm != "keep")


def test_training_and_sampling_have_one_function() -> None:
    """One call from x is the table that training uses, and the network learns: its samples have the data's moments."""
    run = replace(RUN, steps=150, batch_size=32)
    config = consistency_preset(
        "slct_small", start_from="scratch", start_levels=4, end_levels=8, learning_rate=2e-3, run=run
    )
    given = latents(512)
    pipe = finish(train_unconditional(given, config))
    pipe.set_progress_bar_config(disable=True)
    made = pipe(256, generator=torch.Generator().manual_seed(1), output_type="latent").images
    off = (made.mean(0) - given.mean(0)).abs().mean() / given.std()
    assert off < 0.25
    levels = pipe.scheduler
    levels.set_timesteps(1)
    x = 80 * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        output = pipe.unet(levels.scale_model_input(x, levels.timesteps[0]), levels.timesteps[0]).sample
        skip, out = 0.25 / ((80 - 0.002) ** 2 + 0.25), 0.5 * (80 - 0.002) / (80**2 + 0.25) ** 0.5
        torch.testing.assert_close(levels.step(output, levels.timesteps[0], x).prev_sample, skip * x + out * output)


def test_images_need_an_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8)
    config = consistency_preset("ct2023", run=replace(RUN, steps=3))
    unet = small_unet(SHAPE)
    before = unet.conv_in.weight.detach().clone()
    pipe = finish(train_unconditional(latents(), config, unet=unet, vae=vae))
    assert torch.equal(unet.conv_in.weight, before), "a copy is trained"
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = LatentPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    images = [each(2, generator=torch.Generator().manual_seed(0), output_type="pt").images for each in (pipe, again)]
    assert torch.equal(*images)
    assert images[0].shape[:2] == (2, 3)
    half = LatentPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half(1, output_type="pt").images.isfinite().all()
    assert half.unet.dtype == half.vae.dtype == torch.bfloat16
    again.vae = None
    with pytest.raises(InputError, match="output_type latent"):
        again(1)
    with pytest.raises(MissingError, match="no LatentPipeline"):
        LatentPipeline.from_pretrained(tmp_path / "none")
    for wrong in ({}, {"start_from": "scratch", "sigma_data": 1.0}):
        with pytest.raises(InputError, match="say start_from scratch"):
            next(train_unconditional(latents(), consistency_preset("slct_small", **wrong, run=RUN)))
