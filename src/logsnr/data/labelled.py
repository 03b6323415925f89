"""Data sets of images with one label each: what they offer, one that is held as bytes, and pairs with a style."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LabelledData(Protocol):
    """Images that are fetched by index, many at once, with one label each."""

    @property
    def labels(self) -> Tensor:
        """The class of every item (len,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        ...

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``image`` (n, channels, size, size) in [-1, 1], ``label`` (n,), and what else the items carry."""
        ...


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_bytes(images: Tensor) -> Tensor:
    """Images of bytes as floats in [-1, 1]."""
    return images.float() / 127.5 - 1


@dataclass(frozen=True)
class Labelled:
    """Images (n, channels, size, size) as bytes, and labels (n,); ``take`` gives images as floats in [-1, 1]."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``image`` (n, channels, size, size) in [-1, 1] and ``label`` (n,)."""
        return {"image": from_bytes(self.images[indices]), "label": self.labels[indices]}


@dataclass(frozen=True)
class Part:
    """Some items of a data set, ``rows`` (n,) of it, in this order."""

    data: LabelledData
    rows: Tensor

    @property
    def labels(self) -> Tensor:
        """The class of every item (n,)."""
        return self.data.labels[self.rows]

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.data.classes

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """What the data set gives of these items."""
        return self.data.take(self.rows[indices])


@dataclass(frozen=True)
class Pairs:
    """Pairs of a concept and a style (n, 2) that training saw, those that it did not, and each concept's group."""

    trained: Tensor
    held_out: Tensor
    groups: tuple[str, ...]


def take_all(data: LabelledData, *, batch_size: int = 1000) -> dict[str, Tensor]:
    """Every item of a data set that is not empty, fetched in batches: what ``take`` gives, with len(data) rows."""
    batches = [data.take(rows) for rows in torch.arange(len(data)).split(batch_size)]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
