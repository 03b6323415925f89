"""What differs between diffusers' pipelines: how text becomes conditioning, and how the network is called.

Everything else sees one form: latents (n, channels, height, width), and conditioning as a tree of tensors whose first
dimension is the sample, pooled text included.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from diffusers import (
    FluxPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from logsnr.core.errors import UnsupportedError

Pipeline = (
    StableDiffusionPipeline
    | StableDiffusionXLPipeline
    | StableDiffusion3Pipeline
    | PixArtAlphaPipeline
    | PixArtSigmaPipeline
    | FluxPipeline
)
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Architecture(Protocol):
    """One kind of pipeline; ``component`` is the name of its denoising network."""

    component: str

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        """The conditioning of prompts, one row each."""
        ...

    def arguments(self, pipe: Any, xt: Tensor, timestep: Tensor, cond: dict[str, Any], guidance: float) -> Call:
        """What the network is called with, for xt in its own precision and one timestep."""
        ...

    def output(self, pipe: Any, output: Tensor, xt: Tensor) -> Tensor:
        """The network's answer in the shape of xt."""
        ...

    def shape(self, pipe: Any) -> tuple[int, int, int]:
        """Channels, height and width of the latents at the pipeline's own resolution."""
        ...

    def grid_options(self, pipe: Any, steps: int) -> dict[str, Any]:
        """What the pipeline tells its scheduler beside the number of steps: ``mu`` and ``sigmas``, if anything."""
        ...


class StableDiffusion:
    """Stable Diffusion 1 and 2: a UNet that attends to the text of one encoder."""

    component = "unet"

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        text, _ = pipe.encode_prompt(prompts, pipe._execution_device, 1, False)
        return {"encoder_hidden_states": text}

    def arguments(self, pipe: Any, xt: Tensor, timestep: Tensor, cond: dict[str, Any], guidance: float) -> Call:
        told = {**_told_guidance(pipe, xt, guidance), **cond}
        return (xt, timestep), told  # by position, as hooks of diffusers' users expect

    def output(self, pipe: Any, output: Tensor, xt: Tensor) -> Tensor:
        return output

    def shape(self, pipe: Any) -> tuple[int, int, int]:
        config = getattr(pipe, self.component).config
        return config.in_channels, config.sample_size, config.sample_size

    def grid_options(self, pipe: Any, steps: int) -> dict[str, Any]:
        return {}


class StableDiffusionXL(StableDiffusion):
    """The same with two encoders, pooled text and the sizes of the image as added conditions."""

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, device=pipe._execution_device, do_classifier_free_guidance=False
        )
        if pipe.config.force_zeros_for_empty_prompt:
            said = torch.tensor([bool(prompt) for prompt in prompts], device=text.device)
            text, pooled = text * said[:, None, None], pooled * said[:, None]
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        width = pooled.shape[1] if pipe.text_encoder_2 is None else pipe.text_encoder_2.config.projection_dim
        sizes = pipe._get_add_time_ids((side, side), (0, 0), (side, side), text.dtype, width).to(text.device)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(prompts), -1)}
        return {"encoder_hidden_states": text, "added_cond_kwargs": added}


class StableDiffusion3(StableDiffusion):
    """Stable Diffusion 3: a transformer with joint attention over image and text."""

    component = "transformer"

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, prompts, prompts, device=pipe._execution_device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def arguments(self, pipe: Any, xt: Tensor, timestep: Tensor, cond: dict[str, Any], guidance: float) -> Call:
        return (xt,), {"timestep": timestep.expand(len(xt)), **cond}

    def grid_options(self, pipe: Any, steps: int) -> dict[str, Any]:
        _, height, width = self.shape(pipe)
        return _dynamic_shift(pipe, height * width // pipe.transformer.config.patch_size**2)


class PixArt(StableDiffusion):
    """PixArt: a transformer that attends to T5's text, with a variance that is not read."""

    component = "transformer"

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        text, mask, _, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, device=pipe._execution_device)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def arguments(self, pipe: Any, xt: Tensor, timestep: Tensor, cond: dict[str, Any], guidance: float) -> Call:
        sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if pipe.transformer.config.sample_size == 128 and not isinstance(pipe, PixArtSigmaPipeline):
            side = torch.full((len(xt), 2), 128.0 * pipe.vae_scale_factor).to(xt)  # the one size that alpha is told
            sizes = {"resolution": side, "aspect_ratio": torch.ones(len(xt), 1).to(xt)}
        return (xt,), {"timestep": timestep.expand(len(xt)), "added_cond_kwargs": sizes, **cond}

    def output(self, pipe: Any, output: Tensor, xt: Tensor) -> Tensor:
        return output[:, : xt.shape[1]]


class Flux(StableDiffusion):
    """FLUX: a transformer over latents packed by two, told its guidance where it was distilled."""

    component = "transformer"

    def encode(self, pipe: Any, prompts: list[str]) -> dict[str, Any]:
        text, pooled, _ = pipe.encode_prompt(prompts, prompts, device=pipe._execution_device)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}

    def arguments(self, pipe: Any, xt: Tensor, timestep: Tensor, cond: dict[str, Any], guidance: float) -> Call:
        count, _, height, width = xt.shape
        text = cond["encoder_hidden_states"]
        given = {
            "timestep": timestep.expand(count) / 1000,
            "img_ids": pipe._prepare_latent_image_ids(count, height // 2, width // 2, xt.device, xt.dtype),
            "txt_ids": torch.zeros(text.shape[1], 3).to(text),
            **cond,
        }
        if pipe.transformer.config.guidance_embeds:
            given["guidance"] = torch.full((count,), guidance, device=xt.device, dtype=torch.float32)
        return (pipe._pack_latents(xt, *xt.shape),), given

    def output(self, pipe: Any, output: Tensor, xt: Tensor) -> Tensor:
        height, width = (side * pipe.vae_scale_factor for side in xt.shape[2:])
        return pipe._unpack_latents(output, height, width, pipe.vae_scale_factor)

    def shape(self, pipe: Any) -> tuple[int, int, int]:
        return pipe.transformer.config.in_channels // 4, pipe.default_sample_size, pipe.default_sample_size

    def grid_options(self, pipe: Any, steps: int) -> dict[str, Any]:
        _, height, width = self.shape(pipe)
        return {**_dynamic_shift(pipe, height * width // 4), "sigmas": [1 - step / steps for step in range(steps)]}


def guidance_embedding(pipe: Any, scales: Tensor) -> Tensor:
    """What a UNet that is told its guidance (2310.04378) reads of scales (n,) on the CPU, as (n, width)."""
    return pipe.get_guidance_scale_embedding(scales - 1, embedding_dim=pipe.unet.config.time_cond_proj_dim)


def _told_guidance(pipe: Any, xt: Tensor, guidance: float) -> dict[str, Tensor]:
    """The guidance of all rows, for a UNet that is told it."""
    if not _told_scale(pipe):
        return {}
    return {"timestep_cond": guidance_embedding(pipe, torch.full((len(xt),), guidance)).to(xt)}


def _told_scale(pipe: Any) -> bool:
    return isinstance(pipe, StableDiffusionPipeline | StableDiffusionXLPipeline) and bool(
        pipe.unet.config.time_cond_proj_dim
    )


def _dynamic_shift(pipe: Any, num_tokens: int) -> dict[str, float]:
    """The shift of a scheduler that depends on the size of the image."""
    config = pipe.scheduler.config
    if not config.get("use_dynamic_shifting"):
        return {}
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    known = [config.get(name, default) for name, default in zip(names, (256, 4096, 0.5, 1.15), strict=True)]
    return {"mu": calculate_shift(num_tokens, *known)}


_KINDS: tuple[tuple[Any, Architecture], ...] = (
    (StableDiffusionPipeline, StableDiffusion()),
    (StableDiffusionXLPipeline, StableDiffusionXL()),
    (StableDiffusion3Pipeline, StableDiffusion3()),
    (PixArtAlphaPipeline, PixArt()),
    (PixArtSigmaPipeline, PixArt()),
    (FluxPipeline, Flux()),
)


def architecture_of(pipe: Any) -> Architecture:
    """The kind of a pipeline.

    Raises:
        UnsupportedError: it is none of those that are known.
    """
    for kind, architecture in _KINDS:
        if isinstance(pipe, kind):
            return architecture
    raise UnsupportedError(
        f"{type(pipe).__name__} is not supported: use a text-to-image pipeline of Stable Diffusion 1, 2, XL or 3, "
        "PixArt or FLUX"
    )


def is_distilled(pipe: Any) -> bool:
    """Whether the network is told its guidance, so that no second call is made for it."""
    return _told_scale(pipe) or (isinstance(pipe, FluxPipeline) and bool(pipe.transformer.config.guidance_embeds))
