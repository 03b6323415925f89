"""Diffusers pipelines as they are: open one, make a denoiser of it, encode its prompts, decode its latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from logsnr.core.errors import BrokenError, InputError, MissingError, UnsupportedError
from logsnr.models.architectures import Pipeline, architecture_of, is_distilled
from logsnr.models.attention import zeros_once
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, select_rows
from logsnr.models.guidance import SafeGuidance
from logsnr.models.prompted import call_prompted
from logsnr.models.replay import is_plain, replaying
from logsnr.models.swapped import call_with
from logsnr.schedules.scheduler_config import from_scheduler_config, kind_of, timestep_of

_SCHEDULERS = ("logsnr.solvers.scheduler", "logsnr.consistency.scheduler")
"""Where our schedulers are, which a saved pipeline names: diffusers takes only what is imported."""


def open_pipeline(model: str | Path) -> Pipeline:
    """A diffusers pipeline from a folder, a single .safetensors file or a hub id, in float32.

    Raises:
        InputError: no such file or folder, and no hub id.
        MissingError: a hub id that is neither cached nor reachable.
        BrokenError: the folder or file is damaged or incomplete.
        UnsupportedError: a pipeline of a kind that logsnr does not sample yet.
    """
    path = Path(model)
    for module in _SCHEDULERS:
        import_module(module)
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
    architecture_of(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def without_bars() -> Iterator[None]:
    """No loading bars from diffusers and transformers inside the block."""
    shown = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@without_bars()
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


@without_bars()
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
    safe: SafeGuidance | None = None,
    replay: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> NetworkDenoiser:
    """The pipeline's network with the schedule, prediction kind and time map that it was trained with.

    ``safe`` guidance needs conditioning that says what is ``avoided``.

    ``replay`` lets a small network run as a recorded graph after some calls of one shape (not one that is told its
    guidance), and read the many zeros of an absent T5 once; the numbers are the same. ``weights`` stand for the
    network's own parameters of the same names: two models that differ in them share all others. Neither touches the
    pipeline.

    Raises:
        UnsupportedError: safe guidance of a network that is distilled to guide itself.
    """
    config = pipe.scheduler.config
    schedule, kind = from_scheduler_config(config), kind_of(config)
    if safe and is_distilled(pipe):
        raise UnsupportedError(f"{type(pipe).__name__} guides itself by one prompt: it cannot keep away from another")
    network, module = _network(pipe, weights, guidance_scale)
    if replay and weights is None and is_plain(module) and not is_distilled(pipe):
        wrap = partial(replaying, module)
        length = _length_before_zeros(pipe)
        network = zeros_once(module, network, wrap, length=length) if length else wrap(network)
    scale = 1.0 if is_distilled(pipe) else guidance_scale
    return NetworkDenoiser(network, schedule, kind, lambda at: timestep_of(config, at), guidance_scale=scale, safe=safe)


def component_of(pipe: Pipeline) -> str:
    """The name that the denoising network has in the pipeline."""
    return architecture_of(pipe).component


def network_of(pipe: Pipeline) -> nn.Module:
    """The pipeline's denoising network."""
    return getattr(pipe, component_of(pipe))


def _network(
    pipe: Pipeline, weights: Mapping[str, Tensor] | None, guidance: float
) -> tuple[Callable[..., Tensor], nn.Module]:
    """The network as a function of (xt, timestep, **cond) in its own precision, and the module behind it."""
    module: Any = network_of(pipe)
    architecture, dtype = architecture_of(pipe), module.dtype  # dtype looks through all parameters: once
    own = None if weights is None else dict(weights)

    def call(xt: Tensor, timestep: Tensor, **cond: Any) -> Tensor:
        if "prompt" in cond:
            return call_prompted(module, call, xt, timestep, cond)
        inputs, given = architecture.arguments(pipe, xt.to(dtype), timestep, cond, guidance)
        given = {**given, "return_dict": False}
        output = module(*inputs, **given) if own is None else call_with(module, own, inputs, given)
        return architecture.output(pipe, output[0], xt).to(xt.dtype)

    return call, module


def _length_before_zeros(pipe: Pipeline) -> int | None:
    """How many tokens of text precede the zeros of an absent T5; None where there is no T5 to miss."""
    if isinstance(pipe, StableDiffusion3Pipeline) and pipe.text_encoder_3 is None:
        return pipe.tokenizer_max_length
    return None


_ENCODING = Lock()
"""A tokenizer keeps the padding that it was last told, so that two threads would pad each other's prompts."""


@torch.no_grad()
def encode_prompts(
    pipe: Pipeline, prompts: Sequence[str], *, negative: str = "", avoided: str | None = None, guided: bool = True
) -> Conditioning:
    """Conditioning with one row per prompt; equal prompts go through the text encoder once."""
    others = ([negative] if avoided is None else [negative, avoided]) if guided else []
    unique = list(dict.fromkeys([*prompts, *others]))
    with _ENCODING:
        tree = architecture_of(pipe).encode(pipe, unique)
    places = {prompt: place for place, prompt in enumerate(unique)}
    rows = torch.tensor([places[prompt] for prompt in prompts])
    values = select_rows(tree, rows)
    return Conditioning(values, *(select_rows(tree, torch.full((len(prompts),), places[text])) for text in others))


def latent_shape(pipe: Pipeline) -> tuple[int, int, int]:
    """Channels, height and width of the pipeline's latents at its own resolution."""
    return architecture_of(pipe).shape(pipe)


def grid_options(pipe: Pipeline, steps: int) -> dict[str, Any]:
    """What the pipeline tells its scheduler beside the number of steps, as ``scheduler_grid`` takes it."""
    return architecture_of(pipe).grid_options(pipe, steps)


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
