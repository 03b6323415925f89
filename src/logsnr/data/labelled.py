"""A data set of images with one label each, held as bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
        return {"image": self.images[indices].float() / 127.5 - 1, "label": self.labels[indices]}
