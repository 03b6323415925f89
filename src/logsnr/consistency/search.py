"""Which level the second call of a consistency model should have: the one whose images lie nearest to real ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.data.labelled import LabelledData
from logsnr.metrics.frechet import Moments, StreamingMoments, frechet_distance
from logsnr.metrics.judge import Judge, judge_images
from logsnr.models.pipeline import Pipeline
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.consistency import consistency_step
from logsnr.solvers.sample import sample

SIGMAS = (0.17, 0.25, 0.37, 0.53, 0.74, 1.4, 2.5)
"""Levels that are tried for data of deviation 1/2."""


@dataclass(frozen=True)
class Tried:
    """The Frechet distance of images in a judge's features: with a second call at ``sigma``, or without one (None)."""

    sigma: float | None
    frechet_distance: float


def second_levels(pipe: Pipeline, sigmas: Sequence[float] = ()) -> list[float]:
    """Levels to try, in the units of the pipeline's scheduler; without any, ``SIGMAS`` in units of the data.

    Raises:
        InputError: the pipeline is no consistency model, or a level is not between its ends.
    """
    config = pipe.scheduler.config
    if consistency_step(config) is None:
        raise InputError("there is no second call to search in a diffusion model: take what `consistency train` made")
    least, most = config["sigma_min"], config["sigma_max"]
    if outside := [sigma for sigma in sigmas if not least < sigma < most]:
        raise InputError(f"the level {outside[0]:g} is not between those of the model, {least:.3g} and {most:.3g}")
    usual = [2 * config["sigma_data"] * sigma for sigma in SIGMAS]
    found = list(sigmas) or [sigma for sigma in usual if least < sigma < most]
    if not found:
        raise InputError(f"none of the usual levels is between {least:.3g} and {most:.3g}: say which to try")
    return found


def search_sigma(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    judge: Judge,
    real: Moments,
    sigmas: Sequence[float],
    *,
    guidance_scale: float = 1.0,
    batch_size: int = 200,
) -> Iterator[Tried]:
    """Try one call, then two with every level, on the same prompts and seeds; the best is left in the pipeline.

    A search that ends early leaves the levels as they were; those of three calls and more always stay.
    """
    own: list[Any] = pipe.scheduler.config["middle_sigmas"] or []
    found: list[Tried] = []
    try:
        for sigma in (None, *sigmas):
            if sigma is not None:
                pipe.scheduler.register_to_config(middle_sigmas=[[sigma], *own[1:]])
            sampling = SampleConfig(steps=1 if sigma is None else 2, guidance_scale=guidance_scale)
            images = sample(pipe, prompts, seeds=seeds, config=sampling, batch_size=batch_size).images
            found.append(Tried(sigma, frechet_distance(_moments(judge, images), real)))
            yield found[-1]
        best = min(found[1:], key=lambda tried: tried.frechet_distance)
        own = [[best.sigma], *own[1:]]
    finally:
        pipe.scheduler.register_to_config(middle_sigmas=own)


def real_moments(judge: Judge, data: LabelledData, count: int) -> Moments:
    """Moments of a judge's features of real images, ``count`` at most, evenly from the whole data set."""
    rows = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
    stream = StreamingMoments()
    for part in rows.split(1000):
        stream.update(judge_images(judge, data.take(part)["image"])[0])
    return stream.moments()


def _moments(judge: Judge, images: Tensor) -> Moments:
    stream = StreamingMoments()
    for part in images.split(1000):
        stream.update(judge_images(judge, part)[0])
    return stream.moments()
