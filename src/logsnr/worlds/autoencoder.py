"""The autoencoder of a world: pixels, judge features and a light KL term (after 2112.10752, without the GAN)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from logsnr.metrics.judge import Judge, perceptual_errors
from logsnr.models.ema import averaged
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.worlds.config import AutoencoderConfig


def build_autoencoder(config: AutoencoderConfig) -> AutoencoderKL:
    """An AutoencoderKL whose latents have a quarter of the image's resolution."""
    return AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=config.block_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=config.size,
        mid_block_add_attention=False,
    )


class AutoencoderMethod:
    """Mean absolute pixel error + judge-feature error + KL, with an exponential moving average of the weights."""

    def __init__(self, config: AutoencoderConfig, judge: Judge, samples: Tensor):
        self.config, self.judge, self.samples = config, judge.requires_grad_(False), samples
        torch.manual_seed(config.seed)
        self.network = build_autoencoder(config)
        self.average = averaged(self.network, config.ema)

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average, "judge": self.judge}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.network.parameters()), self.config.learning_rate)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=(0.9, 0.99))

    def loss(self, batch: Batch, step: int) -> Loss:
        image = batch["image"]
        posterior = self.network.encode(image).latent_dist
        latents = posterior.mean + posterior.std * batch.normal(*posterior.mean.shape[1:])
        made = self.network.decode(latents).sample
        pixel = functional.l1_loss(made, image)
        feature = feature_distance(self.judge, made, image)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        value = pixel + self.config.feature_weight * feature + self.config.kl_weight * kl
        return Loss(value, {"pixel": pixel.detach(), "feature": feature.detach(), "kl": kl.detach()})

    def after_step(self, step: int) -> None:
        self.average.update_parameters(self.network)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(network=self.network, average=self.average), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, network=self.network, average=self.average)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Samples in even rows, their reconstructions in odd rows."""
        made = reconstruct(self.average.network, self.samples)
        return torch.stack([self.samples.unflatten(0, (-1, 8)), made.unflatten(0, (-1, 8))], 1).flatten(0, 2)

    def export(self, folder: Path) -> None:
        self.average.network.save_pretrained(folder)


def feature_distance(judge: Judge, made: Tensor, image: Tensor) -> Tensor:
    """What a judge sees differ between images, on average over them: see ``perceptual_errors``."""
    with torch.no_grad():
        targets = judge.perceive(image)
    return perceptual_errors(judge.perceive(made), targets).mean()


def perceiver(vae: AutoencoderKL, judge: Judge) -> Callable[[Tensor], list[Tensor]]:
    """What a judge perceives of latents (n, ...) as a network sees them, once decoded; gradients reach the latents."""
    frozen = copy.deepcopy(vae).requires_grad_(False).eval()
    scale, shift = frozen.config.scaling_factor, frozen.config.get("shift_factor") or 0.0

    def perceive(latents: Tensor) -> list[Tensor]:
        return judge.perceive(frozen.decode(latents / scale + shift, return_dict=False)[0])

    return perceive


@torch.no_grad()
def reconstruct(autoencoder: AutoencoderKL, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Images (n, channels, size, size) in [-1, 1] through the mean of the posterior and back, clamped."""
    parts = [autoencoder.decode(autoencoder.encode(x).latent_dist.mean).sample for x in images.split(batch_size)]
    return torch.cat(parts).clamp(-1, 1)
