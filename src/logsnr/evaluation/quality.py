"""The quality protocol: accuracy by two judges, Frechet distance with its floor, precision, recall, nearest images."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from logsnr.data.labelled import LabelledData
from logsnr.evaluation.config import QualityConfig
from logsnr.metrics.frechet import Moments, StreamingMoments, frechet_distance, frechet_stderr, moments
from logsnr.metrics.judge import Judge, judge_images
from logsnr.metrics.precision_recall import nearest_distance, precision_recall

Make = Callable[[Sequence[str], Sequence[int]], Tensor]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Judges:
    """The judge that training may have seen, and the second one, which reports."""

    first: Judge
    second: Judge


@dataclass(frozen=True)
class Reference:
    """Real images in the second judge's features: moments of all training images, and the features themselves."""

    moments: Moments
    features: Tensor
    floor: float
    test_accuracy: float
    test_accuracy_per_class: list[float | None]
    test_nearest: float


def real_features(judge: Judge, data: LabelledData, *, batch_size: int = 1000) -> tuple[Tensor, Tensor]:
    """Features (n, d) and logits (n, classes) of every image of a data set."""
    parts = [judge_images(judge, data.take(rows)["image"]) for rows in torch.arange(len(data)).split(batch_size)]
    features, logits = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(logits)


def reference(judge: Judge, train: LabelledData, test: LabelledData) -> Reference:
    """What real images give: the floor is the distance of the real test images to the training images."""
    features, _ = real_features(judge, train)
    stream = StreamingMoments()
    stream.update(features)
    test_features, logits = real_features(judge, test)
    right = logits.argmax(1) == test.labels
    return Reference(
        moments=stream.moments(),
        features=features,
        floor=frechet_distance(moments(test_features), stream.moments()),
        test_accuracy=float(right.float().mean()),
        test_accuracy_per_class=_per_class(right, test.labels, len(test.classes)),
        test_nearest=float(nearest_distance(test_features, features).mean()),
    )


def quality_of(
    images: Tensor, labels: Tensor, judges: Judges, real: Reference, config: QualityConfig
) -> dict[str, Any]:
    """The figures of images (n, channels, size, size) in [-1, 1] that were asked to show ``labels`` (n,)."""
    features, logits = judge_images(judges.second, images)
    _, first_logits = judge_images(judges.first, images)
    right = logits.argmax(1) == labels
    ratio = precision_recall(real.features[: config.references], features, k=config.neighbours)
    return {
        "frechet_distance": frechet_distance(moments(features), real.moments),
        "frechet_stderr": frechet_stderr(features, real.moments),
        "floor": real.floor,
        "precision": ratio.precision,
        "recall": ratio.recall,
        "judge_accuracy": float((first_logits.argmax(1) == labels).float().mean()),
        "judge_accuracy_second": float(right.float().mean()),
        "per_class": _per_class(right, labels, len(real.test_accuracy_per_class)),
        "nearest_training_distance": float(nearest_distance(features, real.features).mean()),
        "nearest_training_distance_of_test": real.test_nearest,
    }


def class_prompts(prompt: Callable[[int, int], str], num_classes: int, num_images: int) -> tuple[list[str], Tensor]:
    """Prompts and labels (num_images,): classes in turn, templates in turn within a class."""
    labels = torch.arange(num_images) % num_classes
    return [prompt(int(label), index // num_classes) for index, label in enumerate(labels)], labels


def make_images(make: Make, prompts: list[str], config: QualityConfig, progress: Progress | None = None) -> Tensor:
    """Images of the prompts by ``make(prompts, seeds)``, batch by batch, on seeds from ``config.first_seed`` on."""
    seeds, images = range(config.first_seed, config.first_seed + len(prompts)), []
    for start in range(0, len(prompts), config.batch_size):
        rows = slice(start, start + config.batch_size)
        images.append(make(prompts[rows], seeds[rows]))
        if progress:
            progress(min(rows.stop, len(prompts)), len(prompts))
    return torch.cat(images)


def sample_quality(
    make: Make,
    prompt: Callable[[int, int], str],
    judges: Judges,
    real: Reference,
    config: QualityConfig,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quality of ``make(prompts, seeds)`` -> images over balanced classes; ``prompt(label, template)`` words them."""
    prompts, labels = class_prompts(prompt, len(real.test_accuracy_per_class), config.num_images)
    return quality_of(make_images(make, prompts, config, progress), labels, judges, real, config)


def describe(config: QualityConfig, **more: Any) -> dict[str, Any]:
    """The protocol that every value carries."""
    packages = {name: version(name) for name in ("logsnr", "torch", "diffusers", "transformers")}
    return {"name": "quality", **asdict(config), **more, "python": platform.python_version(), "versions": packages}


def _per_class(right: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """The share that is right of each class; None where no image was asked for."""
    members = [right[labels == label] for label in range(num_classes)]
    return [float(found.float().mean()) if len(found) else None for found in members]
