"""The learner: experience after experience, replay, classifier, prototypes, generator, projection, and what it weighs.

What was learned is written to OUT/experience-K under a temporary name; a run that was killed goes on from the last
whole experience, and inside one from the last checkpoint of its training.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.continual.config import ContinualConfig
from logsnr.continual.method import ClassifierMethod
from logsnr.continual.replay import Mixed, ReplayBank, exemplars, seen_before
from logsnr.continual.replayer import Replayer, fitted
from logsnr.continual.sources import replayer_of
from logsnr.core.artifact import staged, write_json
from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import InputError
from logsnr.data.labelled import LabelledData, Part, take_all
from logsnr.data.stream import Experience
from logsnr.metrics.continual import summary
from logsnr.metrics.judge import Judge, judge_images, only
from logsnr.train.loop import Progress


@dataclass(frozen=True)
class Moment:
    """Where a run is: the experience, what it does, and the step of that training."""

    experience: int
    phase: str
    step: int
    steps: int


class Learner:
    """A classifier and, if its memory is one, a generator; ``run`` learns a stream and yields moments.

    Raises:
        InputError: the stream is empty, or ``out`` holds a run of another stream or configuration.
    """

    def __init__(self, stream: Sequence[Experience], config: ContinualConfig, out: Path | None = None):
        if not stream:
            raise InputError("there is no experience to learn: give a stream of at least one")
        self.stream, self.config, self.out = list(stream), config, out
        self.names = stream[0].train.classes
        self.shape = tuple(stream[0].train.take(torch.tensor([0]))["image"].shape[1:])
        self._check_data()
        torch.manual_seed(config.seed)
        self.classifier = Judge(channels=self.shape[0], size=self.shape[1], width=16, classes=self.names)
        self.replayer = replayer_of(config, self.shape, self.names) if config.memory == "generator" else None
        if self.replayer and config.lone_token and config.projection != "none" and config.projected != "values":
            warnings.warn(
                "a lone token gives keys and queries no gradient, so projecting them does nothing: project values",
                stacklevel=2,
            )
        self.matrix: list[list[float]] = []
        self.masked: list[list[float]] = []
        self.records: list[dict[str, Any]] = []
        if out:
            self._check(out)

    def run(self) -> Generator[Moment, None, dict[str, Any]]:
        """Learn all experiences, going on where ``out`` ended, and return ``result``."""
        for experience in self.stream[self._restore() :]:
            yield from self._learn(experience)
        return self.result()

    def result(self) -> dict[str, Any]:
        """Accuracies among all classes seen, and within each experience's own, with what both matrices say."""
        counts = [len(experience.test) for experience in self.stream]
        return {
            "accuracy_matrix": self.matrix,
            **summary(self.matrix, counts),
            "task_il": {"accuracy_matrix": self.masked, **summary(self.masked, counts)},
            "experiences": self.records,
        }

    def _learn(self, experience: Experience) -> Generator[Moment, None, None]:
        start, old = time.monotonic(), self._old_data(experience)
        sampled = time.monotonic()
        mixed = Mixed(experience.train, old, whole=self.config.memory == "all")
        rows = len(experience.train) * len(experience.seen) // len(experience.classes)  # the same for all strategies
        steps = -(-rows * self.config.classifier_epochs // self.config.classifier_batch)
        before = copy.deepcopy(self.classifier) if self.config.soft_labels and old else None
        method = ClassifierMethod(self.classifier.train(), experience.seen, self.config, before, experience.previous)
        index, place = experience.index, self._work(experience.index, "classifier")
        steps_of = fitted(self.config, index, method, mixed, steps, self.config.classifier_batch, place)
        yield from self._fit(index, "classifier", steps_of)
        self.classifier.eval()
        made = time.monotonic()
        last = experience.index == len(self.stream) - 1
        if self.replayer and not (last and self.config.skip_last_generator):
            told = {"index": index, "previous": experience.previous, "old": old, "classifier": self.classifier}
            place = self._work(index, "generator")
            learned = self.replayer.learn(experience.train, experience.classes, **told, out=place)
            yield from self._fit(index, "generator", learned)
        marks = (start, sampled, made, time.monotonic())
        spent = [round(after - before, 1) for before, after in pairwise(marks)]
        seconds = dict(zip(("replay", "classifier", "generator"), spent, strict=True))
        self._measure(experience)
        record: dict[str, Any] = {"experience": experience.index, "classes": list(experience.classes)}
        if isinstance(self.replayer, Replayer) and self.config.projection != "none" and experience.previous:
            record["key_value_drift"] = self.replayer.drift(experience.previous)
        if old and old.accepted is not None:
            record["accepted"] = old.accepted
        self.records.append(record | {"seconds": seconds} | self._sizes(experience, old))
        self._write(experience)

    def _fit(self, index: int, phase: str, steps: Generator[Progress]) -> Generator[Moment, None, None]:
        with closing(steps):  # so that what is saved then is saved now
            for found in steps:
                yield Moment(index, phase, found.step, found.steps)

    def _work(self, index: int, phase: str) -> Path | None:
        """Where a training keeps what it needs to go on."""
        return self.out / "work" / f"{index}-{phase}" if self.out else None

    def _old_data(self, experience: Experience) -> ReplayBank | None:
        """What the memory has of the classes before."""
        before = self.stream[: experience.index]
        if not before or self.config.memory == "none":
            return None
        if self.config.memory == "all":
            return seen_before([each.train for each in before], self.names)
        if self.config.memory == "exemplars":
            parts = {label: _of_class(before, label) for label in experience.previous}
            return exemplars(parts, self.config.exemplar_bytes, self.names, self.config.seed)
        return self._replayed(experience)

    def _replayed(self, experience: Experience) -> ReplayBank:
        assert self.replayer is not None
        place = self._work(experience.index, "replay.safetensors")
        if place and place.exists():
            return ReplayBank.open(place, self.names)
        made = self.replayer.replay(experience.previous, index=experience.index, classifier=self.classifier)
        if place:
            made.save(place)
        return made

    @torch.no_grad()
    def _measure(self, experience: Experience) -> None:
        """Accuracy on every experience so far: among all classes seen, and among the experience's own."""
        seen, rows = torch.tensor(experience.seen), []
        for each in self.stream[: experience.index + 1]:
            items = take_all(each.test)
            logits = judge_images(self.classifier, items["image"])[1]
            own = torch.tensor(each.classes)
            rows.append([_accuracy(only(logits, classes), items["label"]) for classes in (seen, own)])
        full, masked = zip(*rows, strict=True)
        self.matrix.append(list(full))
        self.masked.append(list(masked))

    def _sizes(self, experience: Experience, old: ReplayBank | None) -> dict[str, Any]:
        """What the next experience has to carry, and what was needed in between, in bytes of tensors."""
        so_far = sum(len(each.train) for each in self.stream[: experience.index + 1]) * math.prod(self.shape)
        carried = {"classifier": _bytes(self.classifier.state_dict())}
        if self.replayer:
            carried |= {name: _bytes(tensors) for name, tensors in self.replayer.carried().items()}
        elif self.config.memory != "none":
            carried["images"] = so_far if self.config.memory == "all" else min(so_far, self.config.exemplar_bytes)
        transient = {"replay": old.num_bytes} if old and self.replayer else {}
        return {"bytes": carried, "transient_bytes": transient}

    # What stands on disk

    def _check(self, out: Path) -> None:
        stream = [[list(each.classes), _hash(each)] for each in self.stream]
        settings, told = {"config": to_dict(self.config), "stream": stream}, out / "run.json"
        if told.exists() and not self._same(read_json(told), stream):
            raise InputError(f"{out} holds a run of another stream or configuration: choose another folder")
        write_json(told, settings)

    def _same(self, told: dict[str, Any], stream: list[Any]) -> bool:
        return told["stream"] == stream and from_dict(ContinualConfig, told["config"]) == self.config

    def _check_data(self) -> None:
        """Refuse, before any work, what could not be learned or kept."""
        channels, height, width = self.shape
        if height != width or height % (2 * 2 ** (len(self.config.channels) - 1)):
            raise InputError(f"images of {height}x{width} do not halve {len(self.config.channels)} times: pad them")
        most = max(label for each in self.stream for label in each.classes)
        if most >= len(self.names):
            raise InputError(f"class {most} has no name: the data set has {len(self.names)} of them")
        least = channels * height * width * len(self.stream[-1].seen)
        if self.config.memory == "exemplars" and self.config.exemplar_bytes < least:
            raise InputError(f"{self.config.exemplar_bytes} bytes hold no image of each class: allow {least} or more")

    def _place(self, index: int) -> Path:
        assert self.out is not None
        return self.out / f"experience-{index}"

    def _write(self, experience: Experience) -> None:
        if self.out is None:
            return
        with staged(self._place(experience.index)) as folder:
            self.classifier.save_pretrained(folder / "classifier")
            if self.replayer:
                self.replayer.save(folder)
            write_json(folder / "state.json", self.result())
        for leftover in (self.out / "work").glob(f"{experience.index}-*"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()

    def _restore(self) -> int:
        """How many experiences are done; their last one is taken up."""
        done = 0
        while self.out and self._place(done).exists() and done < len(self.stream):
            done += 1
        if not done:
            return 0
        folder = self._place(done - 1)
        state = read_json(folder / "state.json")
        self.matrix, self.masked = state["accuracy_matrix"], state["task_il"]["accuracy_matrix"]
        self.records = state["experiences"]
        self.classifier.load_state_dict(Judge.from_pretrained(folder / "classifier").state_dict())
        self.classifier.eval()
        if self.replayer:
            self.replayer.load(folder, {label for each in self.records for label in each["classes"]})
        return done


def continual_run(
    stream: Sequence[Experience], config: ContinualConfig | None = None, *, out: Path | None = None
) -> Generator[Moment, None, dict[str, Any]]:
    """Learn a stream, yield moments, and return accuracies, forgetting and bytes; ``Learner`` keeps what was learned.

    With an ``out`` everything is kept there, and a run that was cut goes on exactly.

    Raises:
        InputError: the stream is empty, or ``out`` holds a run of another stream or configuration.
    """
    return Learner(stream, config or ContinualConfig(), out).run()


def _of_class(before: Sequence[Experience], label: int) -> LabelledData:
    """A class's training images in the first experience that showed it."""
    first = next(each for each in before if label in each.classes)
    return Part(first.train, (first.train.labels == label).nonzero()[:, 0])


def _hash(experience: Experience) -> str:
    """What tells one experience from another: the rows of its parts, their labels, and its first image."""
    found = hashlib.sha256()
    for part in (experience.train, experience.validation, experience.test):
        for values in (part.rows, part.labels, part.take(torch.arange(min(len(part), 1)))["image"]):
            found.update(values.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).float().mean())


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())
