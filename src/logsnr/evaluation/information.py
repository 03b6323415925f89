"""The information protocol: what a pipeline's network knows about a labelled data set, measured in its latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.labelled import LabelledData
from logsnr.information.config import InformationConfig
from logsnr.information.curve import MMSECurve
from logsnr.information.profile import Estimate, InformationProfile, Progress, information_profile
from logsnr.information.reference import fit_gaussian
from logsnr.models.pipeline import Pipeline, denoiser_of, encode_images, encode_prompts
from logsnr.schedules.origins import refuse_few_step

REFERENCE_IMAGES = 10_000
_CONVENTION = "continuous density of latents, per latent dimension and never per pixel; an upper bound in expectation"


def pipeline_information(
    pipe: Pipeline,
    train: LabelledData,
    test: LabelledData,
    prompt: Callable[[int], str],
    config: InformationConfig,
    progress: Progress = iter,
) -> InformationProfile:
    """The profile on test images, with the class's ``prompt(label)`` and without; train images give the reference.

    Both are taken in the latents that the network was trained on, between its noisiest level and its first timestep.

    Raises:
        InputError: too few calls or test images for one batch, refused before anything is encoded.
        UnsupportedError: the network is a consistency model.
    """
    needed = _needed(config, len(test))
    refuse_few_step(pipe.scheduler.config, "measure the model that it was trained from")
    denoiser = denoiser_of(pipe, replay=True)
    picks = torch.randperm(len(train), generator=generator(config.seed, "reference"))[:REFERENCE_IMAGES]
    rows = torch.randperm(len(test), generator=generator(config.seed, "data"))[:needed]
    cond = encode_prompts(pipe, [prompt(int(label)) for label in test.labels[rows]], guided=True)
    total = int(pipe.scheduler.config.get("num_train_timesteps", 1000))
    ends = denoiser.schedule.log_snr(torch.tensor([1.0, 1 / total], dtype=torch.float64)).tolist()
    return information_profile(
        denoiser,
        encode_images(pipe, test.take(rows)["image"]),
        denoiser.schedule,
        fit_gaussian(encode_images(pipe, train.take(picks)["image"])),
        cond=cond,
        log_snr_range=(max(ends[0], -14.0), ends[1]),
        config=config,
        progress=progress,
    )


def _needed(config: InformationConfig, available: int) -> int:
    """Samples that the budget can use."""
    curve, batch, ode = 2 * config.curve_levels * config.curve_batches, 2 * config.levels, 4 * config.ode_steps
    batches = (config.calls - curve - ode) // batch
    if batches < 1:
        raise InputError(
            f"{config.calls} calls are too few: the curve takes {curve}, the ODE {ode} and one batch of the integrals "
            f"{batch}; give at least {curve + ode + batch}, or fewer curve levels, curve batches, levels or ODE steps"
        )
    if available < config.curve_batches * config.batch_size:
        raise InputError(
            f"{available} images are too few for the curve's {config.curve_batches} batches of {config.batch_size}: "
            "give more, or fewer or smaller batches"
        )
    return max(batches, config.curve_batches) * config.batch_size


def information_values(profile: InformationProfile) -> dict[str, Any]:
    """The profile as JSON values, each with its standard error and its convention."""
    curve, label, ode = profile.curve, profile.mutual_information, profile.negative_log_likelihood_ode
    values = {
        "mmse": _rows(curve),
        "mmse_given_label": _rows(profile.conditional) if profile.conditional else None,
        "dimensions": curve.dimension,
        "convention": _CONVENTION,
        **_named("nats", profile.negative_log_likelihood),
        **_named("nats_per_dim", _scaled(profile.negative_log_likelihood, 1 / curve.dimension)),
        **_named("bits_per_dim", profile.bits_per_dim),
        "noise_information": profile.noise_information,
        "log_snr_range": list(profile.log_snr_range),
        "reference_tail_nats_per_dim": profile.tail / curve.dimension,
        "samples": len(profile.nll),
        "network_calls": profile.network_calls,
        "sample_evaluations": profile.sample_evaluations,
    }
    if ode and profile.nll_ode is not None:
        values |= {**_named("nats_ode", ode), "samples_ode": len(profile.nll_ode)}
        values |= _named("bits_per_dim_ode", _scaled(ode, 1 / (curve.dimension * math.log(2))))
    return {**values, **_named("mutual_information", label)} if label else values


def _named(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_stderr": found.stderr}


def _scaled(found: Estimate, factor: float) -> Estimate:
    return Estimate(found.value * factor, found.stderr * factor)


def _rows(curve: MMSECurve) -> list[dict[str, float]]:
    columns = zip(curve.log_snr, curve.mmse, curve.stderr, strict=True)
    return [dict(zip(("log_snr", "mmse", "stderr"), row, strict=True)) for row in columns]


def describe(config: InformationConfig, **more: Any) -> dict[str, Any]:
    """The protocol that every value carries."""
    return {"name": "information", **asdict(config), "reference_images": REFERENCE_IMAGES, **more}
