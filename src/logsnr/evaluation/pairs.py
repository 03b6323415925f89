"""The quality protocol where images show a concept in a style: both are judged, also on pairs that no training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.data.labelled import Pairs
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.quality import Judges, Make, Progress, Reference, make_images, quality_of, sample_quality
from logsnr.metrics.judge import Judge, judge_images
from logsnr.metrics.precision_recall import nearest_distance

HELD_OUT_ROUNDS = 4
"""How often each held-out pair is asked for, if the number of images allows."""


class PairPrompt(Protocol):
    """Words a pair by a template, as ``Wording.prompt`` does."""

    def __call__(self, label: int, template: int, *, style: int) -> str: ...


@dataclass(frozen=True)
class Asked:
    """Prompts, and the concept and style (n,) that an image of each should show."""

    prompts: list[str]
    labels: Tensor
    styles: Tensor


def ask_pairs(prompt: PairPrompt, pairs: Tensor, num_images: int) -> Asked:
    """Prompts for pairs (n, 2) in turn, worded by ``prompt(label, template, style=style)`` with templates in turn.

    The order is shuffled and fixed: every concept comes once, in one style or another, before any comes again.
    """
    labels, styles = pairs[_shuffled(pairs)[torch.arange(num_images) % len(pairs)]].unbind(1)
    asked = enumerate(zip(labels.tolist(), styles.tolist(), strict=True))
    return Asked([prompt(label, place, style=style) for place, (label, style) in asked], labels, styles)


def _shuffled(pairs: Tensor) -> Tensor:
    """An order (n,) of pairs by rounds over shuffled concepts; neighbouring concepts begin with different styles."""
    labels, styles = pairs.unbind(1)
    num_labels, num_styles = (int(column.max()) + 1 for column in (labels, styles))
    order = (labels * num_styles + (styles - labels) % num_styles).argsort()
    labels = labels[order]
    rounds = torch.arange(len(pairs)) - torch.searchsorted(labels, labels)
    places = torch.randperm(num_labels, generator=generator(0, "pairs"))
    return order[(rounds * num_labels + places[labels]).argsort()]


def pair_figures(judge: Judge, images: Tensor, labels: Tensor, styles: Tensor) -> dict[str, float]:
    """How often a judge reads the asked concept first, or among its first five, and the asked style."""
    features, logits = judge_images(judge, images)
    top = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    style = judge.read_styles(features).argmax(1) == styles
    rights = {"concept_top1": top[:, 0], "concept_top5": top.any(1), "style_accuracy": style}
    return {name: float(right.float().mean()) for name, right in rights.items()}


def figures_by_both(judges: Judges, images: Tensor, labels: Tensor, styles: Tensor) -> dict[str, float]:
    """``pair_figures`` by the first judge and, ending in ``_second``, by the second."""
    first, second = (pair_figures(judge, images, labels, styles) for judge in (judges.first, judges.second))
    return first | {f"{name}_second": value for name, value in second.items()}


def sample_pair_quality(
    make: Make,
    prompt: PairPrompt,
    pairs: Pairs,
    judges: Judges,
    real: Reference,
    config: QualityConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quality of ``make(prompts, seeds)`` -> images over trained pairs, and over held-out pairs on the seeds after.

    The figures are those of ``quality_of`` and ``figures_by_both``; the second judge also reads ``per_group``.
    ``held_out_pairs`` has the figures of both judges and the distance to the nearest training image.
    """
    asked = ask_pairs(prompt, pairs.trained, config.num_images)
    num_unseen = min(config.num_images, HELD_OUT_ROUNDS * len(pairs.held_out))
    unseen = ask_pairs(prompt, pairs.held_out, num_unseen)
    images = make_images(make, asked.prompts + unseen.prompts, config, progress)
    images, composed = images.split([config.num_images, num_unseen])
    right = judge_images(judges.second, images)[1].argmax(1) == asked.labels
    features = judge_images(judges.second, composed)[0]
    return {
        **quality_of(images, asked.labels, judges, real, config),
        **figures_by_both(judges, images, asked.labels, asked.styles),
        "per_group": _per_group(right, asked.labels, pairs.groups),
        "held_out_pairs": {
            "num_images": num_unseen,
            **figures_by_both(judges, composed, unseen.labels, unseen.styles),
            "nearest_training_distance": float(nearest_distance(features, real.features).mean()),
        },
    }


def _per_group(right: Tensor, labels: Tensor, groups: Sequence[str]) -> dict[str, float]:
    """The share that is right among the concepts of each group."""
    shares = {}
    for group in dict.fromkeys(groups):
        members = right[torch.tensor([groups[label] == group for label in labels.tolist()])]
        if len(members):
            shares[group] = float(members.float().mean())
    return shares


def measure_samples(
    make: Make,
    prompt: Any,
    pairs: Pairs | None,
    judges: Judges,
    real: Reference,
    config: QualityConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """``sample_pair_quality`` over pairs, or where a data set has none ``sample_quality`` over its classes."""
    if pairs is None:
        return sample_quality(make, prompt, judges, real, config, progress)
    return sample_pair_quality(make, prompt, pairs, judges, real, config, progress)
