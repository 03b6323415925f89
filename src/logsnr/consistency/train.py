"""``consistency_train``: a pipeline that samples in one or two calls, from one that needs many."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import StableDiffusion3Pipeline
from torch import Tensor, nn

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.method import Condition, ConsistencyMethod, Perceive, curriculum_of
from logsnr.consistency.scheduler import ConsistencyScheduler
from logsnr.consistency.teacher import Teacher, check_tellable, is_told, tell_guidance
from logsnr.core.artifact import staged
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.data.labelled import Part
from logsnr.data.latents import Latents
from logsnr.models.architectures import is_distilled
from logsnr.models.denoiser import Tree
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, check_pipeline, denoiser_of, encode_prompts, network_of
from logsnr.schedules.origins import is_edm, is_flow
from logsnr.schedules.schedule import trained_range
from logsnr.schedules.scheduler_config import from_scheduler_config, kind_of
from logsnr.solvers.consistency import consistency_step
from logsnr.train.loop import Progress, fit
from logsnr.train.method import Batch, Dataset
from logsnr.worlds.autoencoder import perceiver
from logsnr.worlds.captioned import draw_captions
from logsnr.worlds.load import World
from logsnr.worlds.recipe import world_latents

_BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "snr_shift_scale",
    "prediction_type",
)
_LEVELS = ("sigma_min", "sigma_max", "sigma_data", "grid_exponent")
_MIDDLE = 0.74
"""The level of the second call for latents of unit deviation, where nothing was searched: 0.37 for 1/2."""


def consistency_train(
    pipe: Pipeline,
    data: Dataset,
    config: ConsistencyConfig,
    *,
    condition: Condition | None = None,
    perceive: Perceive | None = None,
) -> Generator[Progress, None, Pipeline]:
    """Train a pipeline's network, in place, as a consistency model, and yield after every step.

    ``data`` has ``latent`` (n, channels, height, width) as the network sees them, of unit deviation; ``condition``
    gives the text of a batch's rows; ``perceive`` is for the perceptual penalty. In the end the network has its first
    average, and the pipeline a ``ConsistencyScheduler``, which together sample with one call or two. With an ``out`` in
    ``config.run`` all averages are written to its folder ``averages``.

    Raises:
        InputError: latents that cannot be learned, a curriculum that does not fit, or a norm that no folder can hold.
        UnsupportedError: a pipeline of a kind that cannot be one.
    """
    check_trainable(pipe, config)
    config = of_unit_data(config, pipe.scheduler.config)
    pipe.to(PartialState(cpu=config.run.cpu).device)
    own = pipe.scheduler.config if config.start_from == "teacher" else None
    scheduler = scheduler_of(config, own)
    if is_told(config):
        tell_guidance(pipe)
    teacher = Teacher(pipe, scheduler.config, config) if config.pairs == "teacher" else None
    module = network_of(pipe)
    if config.start_from == "scratch":
        draw_anew(module, config.run.seed)
    network = denoiser_of(pipe).network
    options = {"condition": condition, "teacher": teacher, "perceive": perceive}
    method = ConsistencyMethod(module, network, scheduler.config, data, config, **options)
    yield from fit(method, data, config.run)
    if config.run.out and not (config.run.out / "averages").exists():
        with staged(config.run.out / "averages") as folder:
            method.export(folder)
    module.load_state_dict(next(iter(method.averages.values())).network.state_dict())
    pipe.scheduler = scheduler
    return pipe


def train_on_world(
    pipe: Pipeline, world: World, config: ConsistencyConfig, cache: Path
) -> Generator[Progress, None, Pipeline]:
    """``consistency_train`` on the real images of a world, captions drawn anew each step.

    Latents are cached in the folder ``cache``, by the autoencoder that made them. The world's first judge perceives.

    Raises:
        MissingError: the images are not installed.
    """
    latents, condition = captioned_latents(pipe, world, cache)
    perceive = perceiver(pipe.vae, world.judge()) if config.perceptual_weight else None
    return consistency_train(pipe, latents, config, condition=condition, perceive=perceive)


def captioned_latents(
    pipe: Pipeline, world: World, cache: Path | None = None, *, rows: Tensor | None = None
) -> tuple[Latents, Condition]:
    """The latents of a world's training images, or of these rows (n,), as the network sees them; and captions of each.

    Raises:
        MissingError: the images are not installed.
    """
    data = world.source.training()
    train, factors = data.train, data.factors()
    if rows is not None:
        train, factors = Part(train, rows), factors[rows]
    found = world_latents(
        pipe.vae, train, cache=cache / f"latents-{fingerprint(pipe.vae)}.safetensors" if cache else None
    )
    shift = pipe.vae.config.get("shift_factor") or 0.0
    latents = replace(found, latents=(found.latents * found.std - shift) * pipe.vae.config.scaling_factor)

    def condition(batch: Batch) -> Tree:
        return encode_prompts(pipe, draw_captions(data.captions, factors, batch), guided=False).values

    return latents, condition


def observe(
    pipe: Pipeline, data: Dataset, config: ConsistencyConfig, *, condition: Condition | None = None
) -> ConsistencyMethod:
    """The method on a pipeline as it is, a consistency model or a teacher, to measure and not to train.

    A consistency model has its own levels; all else is the configuration's. The errors are those of
    ``consistency_train``.
    """
    told, config = pipe.scheduler.config, replace(config, perceptual_weight=0.0)
    if consistency_step(told):
        own = {name: told[name] for name in _LEVELS}
        mean = config.level_mean + math.log(own["sigma_data"] / config.sigma_data)
        config = replace(config, level_mean=mean, **own)
    else:
        check_trainable(pipe, config)
        config = of_unit_data(config, told)
        told = scheduler_of(config, told).config
    return ConsistencyMethod(network_of(pipe), denoiser_of(pipe).network, told, data, config, condition=condition)


def check_trainable(pipe: Pipeline, config: ConsistencyConfig) -> None:
    """Refuse what cannot be trained, before any work; the errors are those of ``consistency_train``."""
    check_pipeline(pipe)
    teacher = pipe.scheduler.config
    curriculum_of(config)
    if config.norm != "keep":
        raise InputError(f"a pipeline's folder cannot hold the norm {config.norm}: keep its own")
    if kind_of(teacher) == "flow" and not isinstance(pipe, StableDiffusion3Pipeline):
        raise UnsupportedError(f"{type(pipe).__name__} tells its scheduler which levels to visit: of flows take SD3")
    if kind_of(teacher) == "flow" and config.start_from == "scratch":
        raise UnsupportedError("the network of a flow pipeline reads its samples as they are: start from the teacher")
    if is_edm(teacher) or consistency_step(teacher):
        raise UnsupportedError("a network with EDM's preconditioning, or a consistency model, is no teacher here")
    if is_distilled(pipe):
        raise UnsupportedError("this network is told its guidance, which training would not tell: take another teacher")
    if is_told(config):
        check_tellable(pipe)
    scheduler_of(of_unit_data(config, teacher), teacher if config.start_from == "teacher" else None)


def of_unit_data(config: ConsistencyConfig, teacher: Mapping[str, Any]) -> ConsistencyConfig:
    """The same training in units of latents of deviation 1; from a teacher, at its own levels only.

    Raises:
        InputError: the teacher has none of these levels.
    """
    factor = 1 / config.sigma_data
    most, least = config.sigma_max * factor, config.sigma_min * factor
    if config.start_from == "teacher":
        high, low = trained_range(from_scheduler_config(teacher))
        most, least = min(most, math.exp(-high / 2)), max(least, math.exp(-low / 2))
    if least >= most:
        raise InputError(f"sigma_min and sigma_max leave no noise between {least:.3g} and {most:.3g}: take others")
    mean = config.level_mean + math.log(factor)
    return replace(config, sigma_min=least, sigma_max=most, sigma_data=1.0, level_mean=mean)


def scheduler_of(config: ConsistencyConfig, teacher: Mapping[str, Any] | None) -> ConsistencyScheduler:
    """The scheduler of what is trained, with levels for one and two calls."""
    kept: dict[str, Any] = (
        {} if teacher is None else {name: teacher[name] for name in _BETAS if teacher.get(name) is not None}
    )
    if teacher is not None and is_flow(teacher):
        kept["prediction_type"] = "flow_prediction"
    levels = {name: getattr(config, name) for name in _LEVELS}
    middle = [[_MIDDLE]] if config.sigma_min < _MIDDLE < config.sigma_max else []
    if config.pairs == "teacher":
        kept["guidance"] = list(config.guidance)
    return ConsistencyScheduler(**kept, **levels, num_levels=config.end_levels + 1, middle_sigmas=middle)


def draw_anew(module: nn.Module, seed: int) -> None:
    """Give a network of diffusers the weights that it would start from."""
    drawn: Any = module
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module.load_state_dict(type(drawn).from_config(drawn.config).state_dict())
