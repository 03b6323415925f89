"""How good replay is of each class as experiences pass, by a judge of all classes that no learner saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from logsnr.continual.config import ContinualConfig, strategy
from logsnr.continual.learner import Learner
from logsnr.continual.pipeline import PrototypePipeline
from logsnr.continual.replay import replay
from logsnr.core.config import read_json
from logsnr.data.labelled import LabelledData, take_all
from logsnr.data.stream import make_stream
from logsnr.metrics.judge import Judge, judge_images
from logsnr.metrics.kernel import kernel_distance
from logsnr.metrics.precision_recall import nearest_distance
from logsnr.train.loop import finish

_APART = 7_919
"""What the judge's seed is from the learners'."""


def judge_of_all(train: LabelledData, test: LabelledData, config: ContinualConfig) -> tuple[Judge, float]:
    """A classifier of all classes at once, trained as the learners' are, and its accuracy on the test images."""
    options = {"classifier_epochs": config.classifier_epochs, "seed": config.seed + _APART}
    stream = make_stream(train, test, [tuple(range(len(train.classes)))], seed=config.seed)
    learner = Learner(stream, strategy("finetune", **options))
    finish(learner.run())
    return learner.classifier, learner.matrix[0][0]


@torch.no_grad()
def replay_quality(
    run: Path, train: LabelledData, test: LabelledData, judge: Judge, *, per_class: int
) -> list[dict[str, Any]]:
    """A row for each class after each experience of a run: what the next one would replay, from the same seeds.

    ``age`` is in experiences since the class came. ``fidelity`` is how often the judge reads the class,
    ``kernel_distance`` is on the judge's features to real test images of the class, ``real_kernel_distance`` that of as
    many training images, and ``nearest_ratio`` the mean distance in pixels to the nearest training image, over that of
    test images: far below 1, images are copies.
    """
    real = {}
    for name, data in (("train", train), ("test", test)):
        items = take_all(data)
        real[name] = [items["image"][items["label"] == label] for label in range(len(data.classes))]
    came: dict[int, int] = {}
    rows = []
    for index, each in enumerate(read_json(run / "result.json")["experiences"]):
        came = {**dict.fromkeys(each["classes"], index), **came}
        pipe = PrototypePipeline.from_pretrained(run / f"experience-{index}")
        config = replace(pipe.source.config, images_per_class=per_class)
        for label in sorted(pipe.source.learned):
            made = take_all(replay(pipe.source, [label], pipe.names, experience=index + 1, config=config))["image"]
            values = _quality(made, real["train"][label], real["test"][label], judge, label)
            rows.append({"experience": index, "label": label, "age": index - came[label], **values})
    return rows


def _quality(made: torch.Tensor, train: torch.Tensor, test: torch.Tensor, judge: Judge, label: int) -> dict[str, float]:
    features, logits = judge_images(judge, made)
    seen, real = (judge_images(judge, images)[0] for images in (train[: len(made)], test))
    near, usual = (nearest_distance(images.flatten(1), train.flatten(1)).mean() for images in (made, test))
    return {
        "fidelity": float((logits.argmax(1) == label).float().mean()),
        "kernel_distance": kernel_distance(features, real),
        "real_kernel_distance": kernel_distance(seen, real),
        "nearest_ratio": float(near / usual),
    }
