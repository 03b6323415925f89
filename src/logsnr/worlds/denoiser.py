"""The denoiser of a world: a conditional UNet and its text encoder, trained jointly on captioned latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from logsnr.data.captions import Wording
from logsnr.models.ema import averaged
from logsnr.models.text import build_text_encoder, token_ids
from logsnr.schedules.families import scaled_linear
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
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


class DenoiserMethod:
    """Mean squared error of the predicted noise at uniform timesteps (Ho et al. 2020), captions drawn afresh each step.

    ``factors`` (n, k) are what the captions may say of each item beside its class, and ``show`` turns the trained
    networks into preview images.
    """

    def __init__(
        self,
        config: DenoiserConfig,
        tokenizer: CLIPTokenizer,
        captions: Wording,
        factors: Tensor,
        show: Callable[[nn.Module, nn.Module], Tensor] | None = None,
    ):
        self.config, self.tokenizer, self.captions, self.factors, self.show = config, tokenizer, captions, factors, show
        torch.manual_seed(config.seed)
        self.unet = build_unet(config)
        self.text_encoder = build_text_encoder(tokenizer, width=config.text_width, layers=config.text_layers)
        self.averages = (averaged(self.unet, config.ema), averaged(self.text_encoder, config.ema))
        schedule = scaled_linear()
        times = torch.arange(1, 1001, dtype=torch.float64) / 1000
        self.alphas, self.sigmas = schedule.alpha(times).float(), schedule.sigma(times).float()

    def start_from(self, folder: Path) -> None:
        """Take the weights of a pipeline's UNet and text encoder as the start of a new leg."""
        unet = UNet2DConditionModel.from_pretrained(folder / "unet")
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        for average, module, source in zip(
            self.averages, (self.unet, self.text_encoder), (unet, text_encoder), strict=True
        ):
            module.load_state_dict(source.state_dict())
            average.network.load_state_dict(source.state_dict())

    def modules(self) -> dict[str, nn.Module]:
        return {
            "unet": self.unet,
            "text_encoder": self.text_encoder,
            "unet_average": self.averages[0],
            "text_encoder_average": self.averages[1],
        }

    def parameter_groups(self) -> list[Group]:
        rate = self.config.learning_rate
        return [Group(list(self.unet.parameters()), rate), Group(list(self.text_encoder.parameters()), rate)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(0.9, 0.99))

    def loss(self, batch: Batch, step: int) -> Loss:
        latent = batch["latent"]
        timesteps = batch.integers(0, 1000)
        noise = batch.normal(*latent.shape[1:])
        prompts = self._captions(batch)
        shape = (-1, *[1] * (latent.dim() - 1))
        alpha = self.alphas.to(latent.device)[timesteps].view(shape)
        sigma = self.sigmas.to(latent.device)[timesteps].view(shape)
        ids = token_ids(self.tokenizer, prompts).to(latent.device)
        text = self.text_encoder(ids)[0]
        predicted = self.unet(alpha * latent + sigma * noise, timesteps, text).sample
        return Loss(functional.mse_loss(predicted, noise))

    def _captions(self, batch: Batch) -> list[str]:
        draws = batch.uniform(4).tolist()
        factors = self.factors[batch["index"].cpu()].tolist()
        labels = batch["label"].tolist()
        return [self.captions.caption(*item) for item in zip(labels, factors, draws, strict=True)]

    def after_step(self, step: int) -> None:
        for average, module in zip(self.averages, (self.unet, self.text_encoder), strict=True):
            average.update_parameters(module)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> Tensor | None:
        return self.show(self.averages[0].network, self.averages[1].network) if self.show else None

    def export(self, folder: Path) -> None:
        self.averages[0].network.save_pretrained(folder / "unet")
        self.averages[1].network.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
