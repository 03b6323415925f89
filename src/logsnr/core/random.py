"""Randomness as a pure function of seeds: one CPU generator per sample, one per training step."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from logsnr.core.errors import InputError

_LARGEST = 2**63 - 1
_BLOCK, _HALVINGS = 64.0, 40


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


class NoisePath:
    """Standard normal noise that moves over time with correlation exp(-gap / 2), for one seed and shape.

    It is e^(-time / 2) B(e^time) of a Brownian motion B. The value at a time depends on (seed, shape, time) alone: a
    block of 64, whose ends count as independent (their correlation is 1e-14), is halved 40 times around it, and each
    middle is drawn by a generator of its own between its neighbours, as is the time in the last part (2001.01328).
    """

    def __init__(self, seed: int, shape: Sequence[int]):
        self.seed, self.shape = int(seed), tuple(shape)
        self._last: dict[float, Tensor] = {}  # the values around the time before, which the next one shares in part

    def __call__(self, time: float) -> Tensor:
        """The noise at a time, float32 on the CPU."""
        low = math.floor(time / _BLOCK) * _BLOCK
        high = low + _BLOCK
        values = {end: self._last[end] if end in self._last else self._draw(end) for end in (low, high)}
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            known = self._last.get(middle)
            values[middle] = self._between(values, low, middle, high, middle) if known is None else known
            low, high = (low, middle) if time < middle else (middle, high)
        self._last = values
        return self._between(values, low, time, high, (low + high) / 2)

    def _draw(self, key: float) -> Tensor:
        return torch.randn(self.shape, generator=generator(self.seed, "path", repr(key)))

    def _between(self, values: dict[float, Tensor], low: float, time: float, high: float, key: float) -> Tensor:
        """The noise at a time given that at two around it."""
        before, after, whole = time - low, high - time, high - low
        mean = values[low] * (math.sinh(after / 2) / math.sinh(whole / 2))
        mean += values[high] * (math.sinh(before / 2) / math.sinh(whole / 2))
        return mean.add_(
            self._draw(key), alpha=math.sqrt(math.expm1(-before) * math.expm1(-after) / -math.expm1(-whole))
        )
