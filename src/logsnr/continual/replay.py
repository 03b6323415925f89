"""Replay: images of old classes, made once an experience, kept without loss, and dealt out class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from logsnr.continual.config import ContinualConfig
from logsnr.core.artifact import load_tensors, save_tensors
from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.labelled import Labelled, LabelledData, from_bytes, take_all, to_bytes
from logsnr.metrics.judge import Judge, judge_images, only
from logsnr.train.method import Dataset


@dataclass(frozen=True)
class ReplayBank(Labelled):
    """Images (n, channels, size, size) as bytes with their labels (n,): a data set that stands alone, and is kept.

    ``accepted`` is the share that a classifier took for its class when it was drawn first, where one was asked.
    """

    accepted: float | None = None

    @property
    def num_bytes(self) -> int:
        """What the images weigh."""
        return self.images.numel()

    def save(self, path: Path) -> None:
        """As safetensors, bit by bit."""
        told = {} if self.accepted is None else {"accepted": torch.tensor(self.accepted, dtype=torch.float64)}
        save_tensors(path, {"images": self.images, "labels": self.labels, **told})

    @classmethod
    def open(cls, path: Path, classes: tuple[str, ...]) -> ReplayBank:
        """The inverse of ``save``."""
        tensors = load_tensors(path)
        accepted = float(tensors["accepted"]) if "accepted" in tensors else None
        return cls(tensors["images"], tensors["labels"], classes, accepted)


class Source(Protocol):
    """What can replay: images (channels, size, size) of the classes that it has ``learned``."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def learned(self) -> set[int]: ...

    def draw(
        self,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        config: ContinualConfig,
        guide: tuple[Judge, Tensor] | None = None,
    ) -> Tensor:
        """Images (n, *shape) in [-1, 1] of classes (n,), each by its own seed; a judge of classes may guide."""
        ...


def replay(
    source: Source,
    classes: Sequence[int],
    names: tuple[str, ...],
    *,
    experience: int,
    config: ContinualConfig,
    classifier: Judge | None = None,
    batch_size: int = 64,
) -> ReplayBank:
    """``images_per_class`` images of each class; image i of a class depends on (seed, experience, class, i) alone.

    A ``classifier`` of these classes guides them by its gradient, or has those drawn anew that it reads otherwise, if
    the configuration says so.

    Raises:
        InputError: the generator has not learned a class.
    """
    check_learned(source, classes)
    learned = torch.tensor(list(classes))
    guide = (classifier, learned) if classifier and config.classifier_guidance else None
    labels = torch.tensor([label for label in classes for _ in range(config.images_per_class)], dtype=torch.long)
    keys = [(label, i) for label in classes for i in range(config.images_per_class)]

    def drawn(rows: Tensor, attempt: int = 0) -> Tensor:
        again = (attempt,) if attempt else ()
        seeds = [_seed(config.seed, experience, *keys[row], *again) for row in rows.tolist()]
        cuts = [slice(first, first + batch_size) for first in range(0, len(rows), batch_size)]
        parts = [source.draw(labels[rows[cut]], seeds=seeds[cut], config=config, guide=guide) for cut in cuts]
        return to_bytes(torch.cat(parts) if parts else torch.zeros(0, *source.shape))

    images, accepted = drawn(torch.arange(len(labels))), None
    for attempt in range(1, config.redraws + 1 if classifier and len(labels) else 1):
        wrong = _misread(classifier, images, labels, learned)
        accepted = 1 - len(wrong) / len(labels) if accepted is None else accepted
        images[wrong] = drawn(wrong, attempt)
    return ReplayBank(images, labels, names, accepted)


def check_learned(source: Source, classes: Sequence[int]) -> None:
    """Refuse classes that a generator cannot draw.

    Raises:
        InputError: it was not trained in an experience of theirs.
    """
    if unknown := [label for label in classes if label not in source.learned]:
        known = ", ".join(map(str, sorted(source.learned))) or "none yet"
        raise InputError(f"the generator has not learned class {unknown[0]}: it has learned {known}")


def _misread(classifier: Judge, images: Tensor, labels: Tensor, learned: Tensor) -> Tensor:
    """The rows that a classifier takes for another of the classes that it has learned."""
    return (only(judge_images(classifier, from_bytes(images))[1], learned).argmax(1) != labels).nonzero()[:, 0]


def _seed(seed: int, experience: int, *place: int) -> int:
    """That of an image: by its class, its number, and how often it was drawn before."""
    return generator(seed, "replay", experience, *place).initial_seed()


class Mixed:
    """New images, and old ones again and again until each class has as many as a new one has on average.

    An epoch shows every new image once. ``replayed`` says which rows are old. With ``whole`` every old image comes
    once, however many there are.
    """

    def __init__(self, new: LabelledData, old: LabelledData | None, *, whole: bool = False):
        self.new, self.old = new, old if old is not None and len(old) else None
        rows, counts = [torch.arange(len(new))], new.labels.bincount()
        if self.old is not None:
            per_class = round(len(new) / int((counts > 0).sum()))
            for label in self.old.labels.unique().tolist():
                own = (self.old.labels == label).nonzero()[:, 0]
                missing = per_class - (int(counts[label]) if label < len(counts) else 0)
                again = own if whole else own[torch.arange(max(missing, 0)) % len(own)]
                rows.append(len(new) + again)
        self.rows = torch.cat(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``image``, ``label`` and ``replayed`` of the items."""
        rows = self.rows[indices]
        is_old = rows >= len(self.new)
        found: dict[str, Tensor] = {"replayed": is_old}
        fresh = self.new.take(rows[~is_old])
        if self.old is None or not is_old.any():
            return found | {name: fresh[name] for name in ("image", "label")}
        again = self.old.take(rows[is_old] - len(self.new))
        for name in ("image", "label"):
            values = torch.zeros((len(rows), *fresh[name].shape[1:]), dtype=fresh[name].dtype)
            values[~is_old], values[is_old] = fresh[name], again[name]
            found[name] = values
        return found


def exemplars(data: Mapping[int, LabelledData], num_bytes: int, names: tuple[str, ...], seed: int) -> ReplayBank:
    """As many images of each class as weigh so much together, drawn from each class's data.

    Raises:
        InputError: not even one image of each class fits.
    """
    first = next(iter(data.values())).take(torch.tensor([0]))["image"]
    each = num_bytes // (first[0].numel() * len(data))
    if each < 1:
        raise InputError(f"{num_bytes} bytes hold no image of each of {len(data)} classes: allow more")
    images, labels = [], []
    for label, items in data.items():
        order = torch.randperm(len(items), generator=generator(seed, "exemplars", label))[:each]
        images.append(to_bytes(items.take(order)["image"]))
        labels.append(torch.full((len(order),), label))
    return ReplayBank(torch.cat(images), torch.cat(labels), names)


def seen_before(parts: Sequence[LabelledData], names: tuple[str, ...]) -> ReplayBank:
    """All images of earlier experiences, for the joint upper bound."""
    items = [take_all(part) for part in parts]
    images = torch.cat([to_bytes(item["image"]) for item in items])
    return ReplayBank(images, torch.cat([item["label"] for item in items]), names)


@torch.no_grad()
def nearest_classes(classifier: Judge, data: Dataset, new: Sequence[int], old: Sequence[int]) -> dict[int, int]:
    """The old class nearest to each new one, by the cosine of the classifier's mean features of their images.

    The released code measures how near class names are by CLIP; names of ours carry no meaning.
    """
    items = data.take(torch.arange(len(data)))
    features = judge_images(classifier, items["image"])[0]
    means = {label: features[items["label"] == label].mean(0) for label in (*new, *old)}
    away = torch.stack([means[label] for label in old])
    return {label: old[int(functional.cosine_similarity(means[label][None], away).argmax())] for label in new}
