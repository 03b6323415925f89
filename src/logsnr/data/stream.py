"""Streams of experiences: data that comes a few classes at a time, with validation images split off training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.labelled import LabelledData, Part


@dataclass(frozen=True)
class Experience:
    """What comes at once: its classes, the classes of all before it, and its images; no image is in two parts."""

    index: int
    classes: tuple[int, ...]
    previous: tuple[int, ...]
    train: Part
    validation: Part
    test: Part

    @property
    def seen(self) -> tuple[int, ...]:
        """All classes up to now, old ones first."""
        return tuple(dict.fromkeys((*self.previous, *self.classes)))


def class_order(num_classes: int, order_seed: int) -> list[int]:
    """The classes in a shuffled order; in their own for seed 0."""
    if order_seed == 0:
        return list(range(num_classes))
    return torch.randperm(num_classes, generator=generator(order_seed, "class order")).tolist()


def split_classes(num_classes: int, num_experiences: int, order_seed: int = 0) -> list[tuple[int, ...]]:
    """Classes in experiences of equal size, in a shuffled order.

    Raises:
        InputError: the experiences cannot have as many classes each.
    """
    if num_experiences < 1 or num_classes % num_experiences:
        raise InputError(f"{num_classes} classes make no {num_experiences} equal experiences: take a divisor")
    order, size = class_order(num_classes, order_seed), num_classes // num_experiences
    return [tuple(order[start : start + size]) for start in range(0, num_classes, size)]


def make_stream(
    train: LabelledData,
    test: LabelledData,
    classes: Sequence[Sequence[int]],
    *,
    validation: float = 0.1,
    repeating: bool = False,
    seed: int = 0,
) -> list[Experience]:
    """Experiences of these classes; the share ``validation`` of each class's training images is split off.

    A ``repeating`` stream shows classes again, each time with other images of theirs, a share of all.

    Raises:
        InputError: a class comes again where none may, is not in the data, or has too few images.
    """
    if not 0 <= validation < 1:
        raise InputError(f"validation is {validation}: it is a share, at least 0 and below 1")
    flat = [label for each in classes for label in each]
    again = sorted({label for label in flat if flat.count(label) > 1})
    if again and not repeating:
        raise InputError(f"class {again[0]} comes in two experiences: ask for a repeating stream, or drop one")
    if any(not each or len(set(each)) < len(each) for each in classes):
        raise InputError("an experience has no class, or one twice: give every experience some classes")
    shares = {label: _Shares(train.labels, label, flat.count(label), validation, seed) for label in set(flat)}
    stream: list[Experience] = []
    for index, each in enumerate(classes):
        parts = [shares[label].next() for label in each]
        kept, held = (Part(train, torch.cat([part[side] for part in parts])) for side in (0, 1))
        shown = Part(test, torch.cat([_rows(test.labels, label) for label in each]))
        stream.append(Experience(index, tuple(each), stream[-1].seen if stream else (), kept, held, shown))
    return stream


class _Shares:
    """A class's training images, dealt out to the experiences that show it."""

    def __init__(self, labels: Tensor, label: int, times: int, validation: float, seed: int):
        rows = _rows(labels, label)
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "stream", label))]
        self.parts, self.validation, self.turn = rows.tensor_split(times), validation, 0
        if any(len(part) < 2 for part in self.parts):
            raise InputError(f"class {label} has {len(rows)} images, too few for {times} experiences")

    def next(self) -> tuple[Tensor, Tensor]:
        """Training and validation rows of the next experience."""
        part = self.parts[self.turn]
        self.turn += 1
        held = min(round(self.validation * len(part)), len(part) - 1)
        return part[held:], part[:held]


def _rows(labels: Tensor, label: int) -> Tensor:
    found = (labels == label).nonzero()[:, 0]
    if not len(found):
        raise InputError(f"class {label} has no image: leave it out of the stream")
    return found
