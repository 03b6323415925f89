"""Diffusers pipelines as they are: open one, make a denoiser of it, encode its prompts, decode its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from torch.func import functional_call
from transformers.utils import logging as transformers_logging

from logsnr.core.errors import BrokenError, InputError, MissingError, UnsupportedError
from logsnr.models.attention import zeros_once
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, select_rows
from logsnr.models.replay import is_plain, replaying
from logsnr.schedules.scheduler_config import from_scheduler_config, kind_of, timestep_of

Pipeline = StableDiffusionPipeline | StableDiffusion3Pipeline


def open_pipeline(model: str | Path) -> Pipeline:
    """A diffusers pipeline from a folder, a single .safetensors file or a hub id, in float32.

    Raises:
        InputError: no such file or folder, and no hub id.
        MissingError: a hub id that is neither cached nor reachable.
        BrokenError: the folder or file is damaged or incomplete.
        UnsupportedError: a pipeline of a kind that logsnr does not sample yet.
    """
    path = Path(model)
    if path.is_dir():
        pipe = _guarded(f"{path} is no complete diffusers pipeline", _from_folder, path)
    elif path.suffix == ".safetensors" and path.is_file():
        pipe = _guarded(f"{path} cannot be loaded", StableDiffusionPipeline.from_single_file, str(path))
    elif path.exists():
        raise InputError(f"{path} is no model: give a diffusers folder or a .safetensors file")
    elif str(model).count("/") == 1 and not str(model).startswith((".", "/")):
        pipe = _from_hub(str(model))
    else:
        raise InputError(
            f"there is no model {str(model)!r}: give an embedded world, a diffusers folder, a file or a hub id"
        )
    return check_pipeline(pipe)


def check_pipeline(pipe: Any) -> Pipeline:
    """The pipeline itself, if logsnr can sample it.

    Raises:
        UnsupportedError: it is of another kind.
    """
    if not isinstance(pipe, StableDiffusionPipeline | StableDiffusion3Pipeline):
        raise UnsupportedError(f"{type(pipe).__name__} is not supported yet: use a Stable Diffusion 1, 2 or 3 pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _without_bars() -> Iterator[None]:
    """No loading bars from diffusers and transformers inside the block."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@_without_bars()
def _guarded(what: str, load: Any, source: Any) -> Any:
    try:
        return load(source, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # diffusers raises a dozen kinds for damaged folders
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise BrokenError(f"{what}: {reason}; save it again or download it anew") from error


def _from_folder(path: Path, **options: Any) -> Any:
    """The pipeline of a folder; diffusers wants to be told what its index says: that Stable Diffusion 3 has no T5."""
    index = DiffusionPipeline.load_config(path)
    absent = [name for name in ("text_encoder_3", "tokenizer_3") if index.get(name) == [None, None]]
    return DiffusionPipeline.from_pretrained(path, **options, **dict.fromkeys(absent))


@_without_bars()
def _from_hub(name: str) -> Any:
    try:
        return DiffusionPipeline.from_pretrained(name, dtype=torch.float32)
    except Exception as error:
        raise MissingError(
            f"the hub model {name!r} could not be loaded ({type(error).__name__}): check the name and the connection, "
            "or give a local folder"
        ) from error


def denoiser_of(
    pipe: Pipeline,
    *,
    guidance_scale: float = 1.0,
    replay: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> NetworkDenoiser:
    """The pipeline's network with the schedule, prediction kind and time map that it was trained with.

    ``replay`` lets a small network run as a recorded graph after some calls of one shape, and read the many zeros of an
    absent T5 once; the numbers are the same. ``weights`` stand for the network's own parameters of the same names: two
    models that differ in them share all others. Neither touches the pipeline.
    """
    config = pipe.scheduler.config
    schedule, kind = from_scheduler_config(config), kind_of(config)
    network, module = _network(pipe, weights)
    if replay and weights is None and is_plain(module):
        wrap = partial(replaying, module)
        length = _length_before_zeros(pipe)
        network = zeros_once(module, network, wrap, length=length) if length else wrap(network)
    return NetworkDenoiser(network, schedule, kind, lambda at: timestep_of(config, at), guidance_scale=guidance_scale)


def network_of(pipe: Pipeline) -> nn.Module:
    """The pipeline's denoising network."""
    return pipe.transformer if isinstance(pipe, StableDiffusion3Pipeline) else pipe.unet


def component_of(pipe: Pipeline) -> str:
    """The name that the denoising network has in the pipeline."""
    return "transformer" if isinstance(pipe, StableDiffusion3Pipeline) else "unet"


def _network(pipe: Pipeline, weights: Mapping[str, Tensor] | None) -> tuple[Callable[..., Tensor], nn.Module]:
    """The network as a function of (xt, timestep, **cond) in its own precision, and the module behind it."""
    module: Any = network_of(pipe)
    dtype, joint = module.dtype, isinstance(pipe, StableDiffusion3Pipeline)  # dtype looks through all parameters: once

    def call(xt: Tensor, timestep: Tensor, **cond: Any) -> Tensor:
        inputs, given = (xt.to(dtype),), {**cond, "return_dict": False}
        if joint:
            given["timestep"] = timestep.expand(len(xt))
        else:
            inputs = (*inputs, timestep)
        output = module(*inputs, **given) if weights is None else functional_call(module, dict(weights), inputs, given)
        return output[0].to(xt.dtype)

    return call, module


def _length_before_zeros(pipe: Pipeline) -> int | None:
    """How many tokens of text precede the zeros of an absent T5; None where there is no T5 to miss."""
    if isinstance(pipe, StableDiffusion3Pipeline) and pipe.text_encoder_3 is None:
        return pipe.tokenizer_max_length
    return None


@torch.no_grad()
def encode_prompts(pipe: Pipeline, prompts: Sequence[str], *, negative: str = "", guided: bool = True) -> Conditioning:
    """Conditioning with one row per prompt; equal prompts go through the text encoder once."""
    unique = list(dict.fromkeys([*prompts, negative] if guided else prompts))
    tree = _encode(pipe, unique)
    rows = torch.tensor([unique.index(prompt) for prompt in prompts])
    values = select_rows(tree, rows)
    if not guided:
        return Conditioning(values)
    return Conditioning(values, select_rows(tree, torch.full((len(prompts),), unique.index(negative))))


def _encode(pipe: Pipeline, prompts: list[str]) -> dict[str, Tensor]:
    device = pipe._execution_device
    if isinstance(pipe, StableDiffusion3Pipeline):
        text, _, pooled, _ = pipe.encode_prompt(
            prompts, prompts, prompts, device=device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": text, "pooled_projections": pooled}
    text, _ = pipe.encode_prompt(prompts, device, 1, False)
    return {"encoder_hidden_states": text}


def latent_shape(pipe: Pipeline) -> tuple[int, int, int]:
    """Channels, height and width of the pipeline's latents at its own resolution."""
    config = (pipe.transformer if isinstance(pipe, StableDiffusion3Pipeline) else pipe.unet).config
    return config.in_channels, config.sample_size, config.sample_size


@torch.no_grad()
def decode_latents(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Images (n, channels, height, width) in [-1, 1] of latents (n, channels, height, width)."""
    config = pipe.vae.config
    shift = config.get("shift_factor") or 0.0
    scaled = latents / config.scaling_factor + shift
    return pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0].float().clamp(-1, 1)


@torch.no_grad()
def encode_images(pipe: Pipeline, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Latents (n, channels, height, width) of images in [-1, 1], scaled as the network sees them: posterior means."""
    config = pipe.vae.config
    shift = config.get("shift_factor") or 0.0
    parts = [pipe.vae.encode(part.to(pipe.vae.dtype)).latent_dist.mean.float() for part in images.split(batch_size)]
    return (torch.cat(parts) - shift) * config.scaling_factor
