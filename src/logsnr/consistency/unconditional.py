"""Consistency models of latents without a condition, as 2502.01441 trains them: a pipeline for research.

Every element of a latent has a mean and a deviation of its own, so a network and its norms are for one resolution. The
network is a ``UNet2DModel`` of diffusers with EDM's preconditioning, told 250 ln s.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, ImagePipelineOutput, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.method import ConsistencyMethod
from logsnr.consistency.norms import replace_norms
from logsnr.consistency.scheduler import ConsistencyScheduler
from logsnr.consistency.train import scheduler_of
from logsnr.core.artifact import load_tensors, save_tensors, write_json
from logsnr.core.config import read_json
from logsnr.core.errors import InputError, MissingError
from logsnr.data.latents import Latents
from logsnr.models.pipeline import without_bars
from logsnr.train.loop import Progress, fit

_ELEMENTS, _TOLD = "elements.safetensors", "latents.json"
_LEAST, _DATA, _MIDDLE = 1e-4, 0.5, 0.37
"""The least deviation of an element, the deviation that the network sees, and the level of the second call."""


@dataclass(frozen=True)
class Elements:
    """Mean and deviation of every element of latents (channels, height, width); ``floored`` did not vary."""

    mean: Tensor
    std: Tensor
    floored: int = 0

    @classmethod
    def of(cls, latents: Tensor) -> Elements:
        """Those of latents (n, channels, height, width)."""
        std = latents.double().std(0)
        floored = int((std < _LEAST).sum())
        if floored:
            warnings.warn(f"{floored} elements of the latents hardly vary: their deviation is {_LEAST:g}", stacklevel=2)
        return cls(latents.double().mean(0).float(), std.clamp(min=_LEAST).float(), floored)

    def seen(self, latents: Tensor) -> Tensor:
        """Latents as the network sees them, of mean 0 and deviation 1/2."""
        return (latents - self.mean.to(latents)) / self.std.to(latents) * _DATA

    def restored(self, seen: Tensor) -> Tensor:
        """The inverse of ``seen``."""
        return seen / _DATA * self.std.to(seen) + self.mean.to(seen)


class LatentPipeline(DiffusionPipeline):
    """Samples of latents in one call or more, and their images where there is an autoencoder; nothing is clipped.

    ``elements`` are the statistics of its latents, ``norm`` what stands in the place of GroupNorm.
    """

    _optional_components: ClassVar[list[str]] = ["vae"]
    elements: Elements
    norm: str

    def __init__(self, unet: UNet2DModel, scheduler: ConsistencyScheduler, vae: AutoencoderKL | None = None):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)

    @classmethod
    def of(
        cls, unet: UNet2DModel, scheduler: ConsistencyScheduler, elements: Elements, norm: str, vae: Any = None
    ) -> Self:
        """The pipeline of a network that was trained on latents of these statistics."""
        pipe = cls(unet, scheduler, vae)
        pipe.elements, pipe.norm = elements, norm
        return pipe

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        *,
        num_inference_steps: int = 1,
        sigmas: list[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "pt", "np", "latent"] = "pil",
    ) -> ImagePipelineOutput:
        """``num_images`` images, by as many calls as asked for or as there are ``sigmas``.

        Raises:
            InputError: no image, levels that the scheduler refuses, or images without an autoencoder.
        """
        if num_images < 1 or (self.vae is None and output_type != "latent"):
            raise InputError("ask for one image or more; without an autoencoder, for output_type latent")
        scheduler, unet = self.scheduler, self.unet.eval()
        scheduler.set_timesteps(None if sigmas else num_inference_steps, device=self.device, sigmas=sigmas)
        shape = (num_images, *self.elements.mean.shape)
        x = randn_tensor(shape, generator=generator, device=self.device, dtype=unet.dtype) * scheduler.init_noise_sigma
        for timestep in self.progress_bar(scheduler.timesteps):
            output = unet(scheduler.scale_model_input(x, timestep), timestep).sample
            x = scheduler.step(output, timestep, x, generator=generator).prev_sample
        latents = self.elements.restored(x)  # in the network's own type
        if output_type == "latent":
            return ImagePipelineOutput(images=latents)
        return ImagePipelineOutput(images=VaeImageProcessor().postprocess(self.vae.decode(latents).sample, output_type))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """A folder as diffusers writes it, and what its latents and norms are."""
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        save_tensors(folder / _ELEMENTS, {"mean": self.elements.mean, "std": self.elements.std})
        write_json(folder / _TOLD, {"norm": self.norm, "floored": self.elements.floored})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """The inverse of ``save_pretrained``, bit by bit.

        Raises:
            MissingError: the folder holds no such pipeline.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / _TOLD).exists():
            raise MissingError(f"{folder} holds no LatentPipeline: give what its save_pretrained wrote")
        told, tensors = read_json(folder / _TOLD), load_tensors(folder / _ELEMENTS)
        elements = Elements(tensors["mean"], tensors["std"], told["floored"])
        unet = with_norm(UNet2DModel.from_config(UNet2DModel.load_config(folder / "unet")), told["norm"], elements)
        unet.load_state_dict(load_tensors(folder / "unet" / SAFETENSORS_WEIGHTS_NAME))
        unet = unet.to(options.get("torch_dtype") or unet.dtype)
        with without_bars():
            pipe = super().from_pretrained(folder, unet=unet, **options)
        pipe.elements, pipe.norm = elements, told["norm"]
        return pipe


def with_norm(unet: UNet2DModel, norm: str, elements: Elements) -> UNet2DModel:
    """The network with norms of a kind, "keep" for its own, in evaluation mode."""
    if norm != "keep":
        kind: Any = norm
        device = next(unet.parameters()).device
        probe = torch.zeros(2, *elements.mean.shape, device=device), torch.zeros(2, device=device)
        replace_norms(unet, kind, probe)
    return unet.eval()


def small_unet(shape: tuple[int, ...], seed: int = 0) -> UNet2DModel:
    """A network of 0.7 million parameters for small latents (channels, size, size)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
        )


def train_unconditional(
    latents: Tensor, config: ConsistencyConfig, *, unet: UNet2DModel | None = None, vae: AutoencoderKL | None = None
) -> Generator[Progress, None, LatentPipeline]:
    """Train a network from scratch on latents (n, channels, size, size) as an autoencoder made them; yield every step.

    In the end the pipeline has the first average of the weights, of a copy of ``unet`` or of a small network.

    Raises:
        InputError: latents that cannot be learned, or a configuration that needs a teacher.
    """
    if config.start_from != "scratch" or config.sigma_data != _DATA:
        raise InputError(f"without a condition say start_from scratch, and sigma_data {_DATA}, which latents are given")
    elements = Elements.of(latents)
    shape = tuple(latents.shape[1:])
    network = with_norm(copy.deepcopy(unet) or small_unet(shape, config.run.seed), config.norm, elements).train()
    scheduler = scheduler_of(replace(config, norm="keep"), None)
    if config.sigma_min < _MIDDLE < config.sigma_max:
        scheduler.register_to_config(middle_sigmas=[[_MIDDLE]])
    data = Latents(elements.seen(latents), torch.zeros(len(latents), dtype=torch.long), 0.0, _DATA)

    def call(x: Tensor, timesteps: Tensor) -> Tensor:
        return network(x, timesteps).sample

    method = ConsistencyMethod(network, call, scheduler.config, data, config)
    yield from fit(method, data, config.run)
    network.load_state_dict(next(iter(method.averages.values())).network.state_dict())
    return LatentPipeline.of(network.eval(), scheduler, elements, config.norm, vae)
