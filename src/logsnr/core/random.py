"""Randomness as a pure function of seeds: one CPU generator per sample, one per training step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from logsnr.core.errors import InputError

_LARGEST = 2**63 - 1


def parse_seeds(text: str) -> list[int]:
    """Seeds of ``"0-7,12"`` in the order written; repeats are kept.

    Raises:
        InputError: the text is not numbers and ascending ranges separated by commas.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,19})\s*(?:-\s*(\d{1,19})\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last > _LARGEST or last - first >= 1_000_000:
            raise InputError(
                f"seeds {text!r} cannot be read: {part.strip()!r} is no number or rising range; write 0-7,12"
            )
        seeds.extend(range(first, last + 1))
    return seeds


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream is a pure function of the key, such as ``(seed,)`` or ``(seed, "order", epoch)``."""
    if len(key) == 1 and isinstance(key[0], int):
        return torch.Generator().manual_seed(key[0])
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & _LARGEST)


def sample_noise(seeds: Sequence[int], shape: Sequence[int], *, stream: int | None = None) -> Tensor:
    """Standard normal noise (len(seeds), *shape), float32 on the CPU; row k depends on seed k and the stream alone.

    Without a stream the row equals what a diffusers pipeline draws from ``torch.Generator().manual_seed(seed)``.
    """
    keys = [(int(seed),) if stream is None else (int(seed), "stream", stream) for seed in seeds]
    rows = [torch.randn(tuple(shape), generator=generator(*key)) for key in keys]
    return torch.stack(rows) if rows else torch.empty(0, *shape)
