"""The order of training data as a pure function of (seed, step)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from logsnr.core.random import generator


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_items: int) -> Tensor:
    return torch.randperm(num_items, generator=generator(seed, "order", epoch))


def batch_indices(seed: int, step: int, batch_size: int, num_items: int) -> Tensor:
    """Indices (batch_size,) of the items of a step: epoch after epoch, each a fresh shuffle, without a gap between."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = torch.div(positions, num_items, rounding_mode="floor")
    parts = [
        _permutation(seed, int(epoch), num_items)[positions[epochs == epoch] - epoch * num_items]
        for epoch in epochs.unique()
    ]
    return torch.cat(parts)
