"""How good replay is of each class as experiences pass, by a judge of all classes that no learner saw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.continual.config import ContinualConfig, strategy
from logsnr.continual.learner import Learner
from logsnr.continual.replay import ReplayBank, replay
from logsnr.continual.sources import open_source
from logsnr.core.config import read_json
from logsnr.core.steps import finish
from logsnr.data.labelled import LabelledData
from logsnr.data.stream import make_stream
from logsnr.metrics.judge import Judge, judge_images
from logsnr.metrics.kernel import kernel_distance
from logsnr.metrics.precision_recall import nearest_distance

_SEED = 7_919
"""The judge's: no learner should have it."""


def judge_of_all(train: LabelledData, test: LabelledData, config: ContinualConfig) -> tuple[Judge, float]:
    """A classifier of all classes at once, trained as by this configuration, and its accuracy on the test images."""
    alike = ("classifier_epochs", "classifier_learning_rate", "classifier_batch")
    options = {name: getattr(config, name) for name in alike}
    stream = make_stream(train, test, [tuple(range(len(train.classes)))])
    learner = Learner(stream, strategy("finetune", seed=_SEED, **options))
    finish(learner.run())
    return learner.classifier, learner.matrix[0][0]


class ReplayQuality:
    """What replay is worth, by a judge and real images of the same data set."""

    def __init__(self, train: LabelledData, test: LabelledData, judge: Judge):
        self.judge, labels = judge, range(len(train.classes))
        self.train, self.test = ([_of(data, label) for label in labels] for data in (train, test))
        self.features = [judge_images(judge, images)[0] for images in self.test]
        self.floors = [kernel_distance(rows[::2], rows[1::2]) for rows in self.features]
        self.usual = [self._nearest(images, label) for label, images in enumerate(self.test)]

    def _nearest(self, images: Tensor, label: int) -> float:
        return float(nearest_distance(images.flatten(1), self.train[label].flatten(1)).mean())

    def of_run(self, run: Path, *, per_class: int) -> list[dict[str, Any]]:
        """A row for each class after each experience of a run: what the next one would replay, from the same seeds.

        ``age`` is in experiences since the class came. ``fidelity`` is how often the judge reads the class,
        ``kernel_distance`` is on the judge's features to real test images of the class, ``real_kernel_distance`` that
        between halves of them, and ``nearest_ratio`` the mean distance in pixels to the nearest training image, over
        that of test images: far below 1, images are copies.
        """
        came: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        for index, each in enumerate(read_json(run / "result.json")["experiences"]):
            came = {**dict.fromkeys(each["classes"], index), **came}
            made = _replayed(run / f"experience-{index}", index + 1, per_class)
            for label in made.labels.unique().tolist():
                told = {"experience": index, "label": label, "age": index - came[label]}
                rows.append(told | self._of_images(_of(made, label), label))
        return rows

    @torch.no_grad()
    def _of_images(self, made: Tensor, label: int) -> dict[str, float]:
        features, logits = judge_images(self.judge, made)
        return {
            "fidelity": float((logits.argmax(1) == label).float().mean()),
            "kernel_distance": kernel_distance(features, self.features[label]),
            "real_kernel_distance": self.floors[label],
            "nearest_ratio": self._nearest(made, label) / self.usual[label],
        }


def _replayed(folder: Path, experience: int, per_class: int) -> ReplayBank:
    """What an experience would replay by the generator in the folder, led by its classifier if the run's replay is."""
    source, told, names = open_source(folder)
    config = replace(told, images_per_class=per_class)
    judge = Judge.from_pretrained(folder / "classifier").eval() if config.asks_classifier else None
    options: dict[str, Any] = {"experience": experience, "config": config, "classifier": judge}
    return replay(source, sorted(source.learned), names, **options)


def _of(data: LabelledData, label: int) -> Tensor:
    """The images of a class."""
    return data.take((data.labels == label).nonzero()[:, 0])["image"]
