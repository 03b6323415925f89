"""Class prototypes (2312.06710): an image of each class that the generator reads and, if it learns, that learns too.

A labelled deviation: in the released code a "learnable" prototype moves once. Here the rows of the current classes
are parameters with their own AdamW state each, which move in every step that shows their class and are pulled to where
they began; those of old classes are rounded to how they are stored, and never move again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.continual.config import Mode, Start
from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.labelled import LabelledData, from_bytes, take_all, to_bytes
from logsnr.metrics.judge import Judge, judge_images, only

_TYPES = {"float32": torch.float32, "float16": torch.float16}


class PrototypeBank(nn.Module):
    """Prototypes of a shape (channels, size, size) by class, smaller ones if ``size`` says so; of old classes fixed.

    ``storage`` is what a prototype is rounded to when its experience is over: every later use is of the rounded one.
    """

    def __init__(self, shape: Sequence[int], *, mode: Mode = "learned", size: int = 0, storage: str = "float32"):
        super().__init__()
        self.shape, self.mode, self.storage = tuple(shape), mode, storage
        self.small = (shape[0], size or shape[1], size or shape[2])
        self.kept: dict[int, Tensor] = {}
        self.starts: dict[int, Tensor] = {}
        self.current = nn.ParameterDict()

    def begin(self, starts: Mapping[int, Tensor]) -> None:
        """Take prototypes for the classes of a new experience, from images (channels, size, size) in [-1, 1].

        Classes that are known already keep theirs.
        """
        fresh = {label: image for label, image in starts.items() if label not in self.kept}
        self.starts = {label: self._shrink(image) for label, image in fresh.items()}
        learned = self.mode == "learned"
        self.current = nn.ParameterDict(
            {str(label): nn.Parameter(start.clone(), requires_grad=learned) for label, start in self.starts.items()}
        )

    def finish(self) -> None:
        """The experience is over: its prototypes are rounded, and do not move any more."""
        for name, value in self.current.items():
            self.kept[int(name)] = self._stored(value.detach().clamp(-1, 1))
        self.starts, self.current = {}, nn.ParameterDict()

    def images(self, labels: Tensor) -> Tensor:
        """The prototypes of labels (n,), as large as images; zeros where there are none by the mode.

        Raises:
            InputError: a class has no prototype yet.
        """
        if self.mode == "none":
            return torch.zeros(len(labels), *self.shape, device=labels.device)
        rows = [self._row(label).to(labels.device) for label in labels.tolist()]
        return functional.interpolate(torch.stack(rows), self.shape[1:], mode="nearest")

    def _row(self, label: int) -> Tensor:
        if str(label) in self.current:
            return self.current[str(label)]
        if label not in self.kept:
            raise InputError(f"class {label} has no prototype yet: its experience has not begun")
        return self._read(self.kept[label])

    @torch.no_grad()
    def pull(self, weight: float, learning_rate: float) -> None:
        """Move the prototypes that just learned towards where they began, and keep them in [-1, 1]."""
        for name, value in self.current.items():
            if value.grad is not None:
                value.sub_(learning_rate * weight * (value - self.starts[int(name)])).clamp_(-1, 1)

    def _shrink(self, image: Tensor) -> Tensor:
        return functional.interpolate(image[None], self.small[1:], mode="area")[0]

    def _stored(self, value: Tensor) -> Tensor:
        return to_bytes(value) if self.storage == "uint8" else value.to(_TYPES[self.storage])

    def _read(self, stored: Tensor) -> Tensor:
        return from_bytes(stored) if stored.dtype == torch.uint8 else stored.float()

    def tensors(self) -> dict[str, Tensor]:
        """What is kept of old classes, by class, as it is stored."""
        return {f"class-{label}": value for label, value in sorted(self.kept.items())}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what ``tensors`` gave."""
        self.kept = {int(name.removeprefix("class-")): value for name, value in tensors.items()}


@torch.no_grad()
def starts_of(
    data: LabelledData,
    classes: Sequence[int],
    start: Start,
    classifier: Judge | None,
    learned: Tensor,
    *,
    seed: int = 0,
) -> dict[int, Tensor]:
    """The image from which each class's prototype begins, by the classifier that has just ``learned`` its classes.

    Raises:
        InputError: the start is chosen by a classifier, and none is given.
    """
    items = take_all(data)
    found: dict[int, Tensor] = {}
    for label in classes:
        images = items["image"][items["label"] == label]
        found[label] = _start(images, label, start, classifier, learned, seed)
    return found


def _start(images: Tensor, label: int, start: Start, classifier: Judge | None, learned: Tensor, seed: int) -> Tensor:
    if start == "mean":
        return images.mean(0)
    if start == "noise":
        return torch.randn(images.shape[1:], generator=generator(seed, "prototype", label)).clamp(-1, 1)
    if classifier is None:
        raise InputError(f"prototypes that begin from {start!r} need a classifier: give one, or begin from mean")
    features, logits = judge_images(classifier, images)
    if start == "medoid":
        return images[(features - features.mean(0)).norm(dim=1).argmin()]
    sure = only(logits, learned).softmax(1)[:, label]
    return images[sure.argmax() if start == "most" else sure.argmin()]


def is_learned(bank: PrototypeBank) -> bool:
    """Whether prototypes of the current classes are trained."""
    return any(value.requires_grad for value in bank.current.values())


def settings(bank: PrototypeBank) -> dict[str, Any]:
    """What a saved bank is made anew from."""
    return {"shape": list(bank.shape), "mode": bank.mode, "size": bank.small[1], "storage": bank.storage}
