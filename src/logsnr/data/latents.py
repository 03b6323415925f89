"""Latents of a data set, encoded once and cached with their measured mean and standard deviation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from logsnr.core.artifact import load_tensors, save_tensors
from logsnr.core.errors import BrokenError
from logsnr.data.labelled import LabelledData


@dataclass(frozen=True)
class Latents:
    """Latents (n, channels, height, width) scaled to a standard deviation of 1, labels (n,), and extra columns."""

    latents: Tensor
    labels: Tensor
    mean: float
    std: float

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``latent`` and ``label`` of the items."""
        return {"latent": self.latents[indices], "label": self.labels[indices], "index": indices}


@torch.no_grad()
def encode_latents(
    data: LabelledData, encode: Callable[[Tensor], Tensor], *, cache: Path | None = None, batch_size: int = 250
) -> Latents:
    """Encode every image of a data set, or read the cache when it fits.

    ``encode`` maps images (n, channels, size, size) in [-1, 1] to latents. ``std`` is the root mean square over all
    latents about their common mean; its inverse is a diffusers autoencoder's ``scaling_factor``.

    Raises:
        BrokenError: the cache belongs to another data set or is damaged.
    """
    if cache and cache.exists():
        raw = load_tensors(cache).get("latents")
        if raw is None or len(raw) != len(data):
            raise BrokenError(f"{cache} does not hold the latents of {len(data)} images: remove it")
    else:
        raw = torch.cat([encode(data.take(part)["image"]) for part in torch.arange(len(data)).split(batch_size)])
        if cache:
            save_tensors(cache, {"latents": raw})
    mean, std = float(raw.double().mean()), float(raw.double().std())
    return Latents(raw / std, data.labels, mean, std)
