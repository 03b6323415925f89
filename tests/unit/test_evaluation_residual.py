"""The loss of explanation against a divergence that is known, and on an edited network."""

from __future__ import annotations

import pytest
import torch
from pipelines import tiny_sd

from logsnr.core.types import Level, Prediction
from logsnr.evaluation.residual import explained_worse
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import denoiser_of, encode_prompts, latent_shape
from logsnr.schedules.families import LinearVP


def normal(variance: float) -> object:
    """The exact denoiser of a centred Gaussian."""

    def denoise(xt: torch.Tensor, level: Level, cond: object = None) -> Prediction:
        x0 = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2) * xt
        return Prediction(x0, (xt - level.alpha * x0) / level.sigma)

    return denoise


def test_the_gap_of_two_gaussians_is_their_divergence() -> None:
    data = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)).double()
    found = explained_worse(
        normal(1.0), normal(2.0), data, LinearVP(), log_snr_range=(-14.0, 14.0), levels=80, batch_size=1000
    )
    truth = 3 * 0.5 * (1 / 2 - 1 + torch.tensor(2.0).log().item())
    assert abs(found.value - truth) < 4 * found.stderr + 1e-3
    assert 0 < found.stderr < 0.02


def test_an_edit_of_the_text_is_seen_and_no_edit_is_none() -> None:
    pipe = tiny_sd()
    edited = {name: 3 * value.detach() for name, value in select_parameters(pipe.unet, "xattn").items()}
    data = torch.randn(6, *latent_shape(pipe), generator=torch.Generator().manual_seed(1))
    cond = encode_prompts(pipe, ["a bag"] * 6, guided=False)
    same, other = denoiser_of(pipe), denoiser_of(pipe, weights=edited)
    options = {"levels": 4, "batch_size": 4}
    assert explained_worse(same, same, data, same.schedule, cond, **options).value == 0.0
    assert explained_worse(same, other, data, same.schedule, cond, **options).value != pytest.approx(0.0, abs=1e-3)
