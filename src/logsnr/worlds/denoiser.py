"""The denoiser of a world: a conditional UNet and its text encoder, trained jointly on captioned latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from logsnr.data.captions import Wording
from logsnr.models.text import build_text_encoder, token_ids
from logsnr.schedules.families import scaled_linear
from logsnr.train.method import Batch, Loss
from logsnr.worlds.captioned import CaptionedMethod
from logsnr.worlds.config import DenoiserConfig


def build_unet(config: DenoiserConfig) -> UNet2DConditionModel:
    """A UNet with cross-attention at every resolution."""
    depth = len(config.block_channels)
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("CrossAttnDownBlock2D",) * depth,
        up_block_types=("CrossAttnUpBlock2D",) * depth,
        cross_attention_dim=config.text_width,
        attention_head_dim=config.heads,
        norm_num_groups=16,
    )


def build_pipeline(
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    *,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    prediction: str = "epsilon",
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of trained parts, with DPM-Solver++ as its scheduler."""
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class DenoiserMethod(CaptionedMethod):
    """Mean squared error of the predicted noise, or v, at uniform timesteps (Ho et al. 2020), captions drawn each step.

    The arguments are those of ``CaptionedMethod``.
    """

    parts: ClassVar[Mapping[str, Any]] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
    pipeline = staticmethod(build_pipeline)

    def __init__(
        self,
        config: DenoiserConfig,
        tokenizer: CLIPTokenizer,
        captions: Wording,
        factors: Tensor,
        show: Callable[..., Tensor] | None = None,
    ):
        torch.manual_seed(config.seed)
        self.unet, self.prediction = build_unet(config), config.prediction
        self.text_encoder = build_text_encoder(tokenizer, width=config.text_width, layers=config.text_layers)
        networks = {"unet": self.unet, "text_encoder": self.text_encoder}
        super().__init__(config, networks, tokenizer, captions, factors, show)
        schedule = scaled_linear()
        times = torch.arange(1, 1001, dtype=torch.float64) / 1000
        self.alphas, self.sigmas = schedule.alpha(times).float(), schedule.sigma(times).float()

    def loss(self, batch: Batch, step: int) -> Loss:
        latent = batch["latent"]
        timesteps = batch.integers(0, 1000)
        noise = batch.normal(*latent.shape[1:])
        prompts = self.draw_captions(batch)
        shape = (-1, *[1] * (latent.dim() - 1))
        alpha = self.alphas.to(latent.device)[timesteps].view(shape)
        sigma = self.sigmas.to(latent.device)[timesteps].view(shape)
        ids = token_ids(self.tokenizer, prompts).to(latent.device)
        text = self.text_encoder(ids)[0]
        predicted = self.unet(alpha * latent + sigma * noise, timesteps, text).sample
        aim = noise if self.prediction == "epsilon" else alpha * noise - sigma * latent
        return Loss(functional.mse_loss(predicted, aim))
