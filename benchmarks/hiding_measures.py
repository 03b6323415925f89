"""What is asked of a hidden model beside the protocol of ``evaluate``: plain prompts, near keys, each other key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

import logsnr
from logsnr.core.random import generator
from logsnr.metrics.bounds import clopper_pearson_upper
from logsnr.metrics.judge import judge_images
from logsnr.models.low_rank import LowRank
from logsnr.models.pipeline import Pipeline
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.worlds.load import World

SIGMAS = (0.1, 0.3, 1.0)
"""Noise that is added to a key, in units of its numbers' size."""
_DRAWS = 20
"""Near keys of each distance."""


@dataclass(frozen=True)
class Ask:
    """Images of one class by a public model, and which of them a judge takes for it."""

    world: World
    public: Pipeline
    label: int
    sampling: SampleConfig
    first_seed: int
    second: bool = True

    def opened(self, count: int, keys: Prompt | Sequence[Prompt] | None = None, *, held_out: bool) -> dict[str, Any]:
        """The share that shows the class, with a key, one a row, or none."""
        captions = self.world.captions
        styles = len(captions.styles) or 1
        worded = [(place // styles, place % styles if captions.styles else None) for place in range(count)]
        prompts = [captions.prompt(self.label, turn, held_out=held_out, style=style) for turn, style in worded]
        seeds = range(self.first_seed, self.first_seed + count)
        made = logsnr.sample(self.public, prompts, seeds=seeds, key=keys, config=self.sampling, batch_size=100)
        logits = judge_images(self.world.judge(second=self.second), made.images)[1]
        hits = int((logits.argmax(1) == self.label).sum())
        return {"share": hits / count, "hits": hits, "images": count, "upper95": clopper_pearson_upper(hits, count)}

    def plain(self, count: int) -> dict[str, Any]:
        """Without a key, in words that training saw."""
        return self.opened(count, held_out=False)

    def near(self, key: Prompt, count: int) -> dict[str, Any]:
        """With keys beside the right one, by the size of the noise."""
        return {str(sigma): self.opened(count, blurred(key, sigma, count), held_out=True) for sigma in SIGMAS}


def worst_kind(found: dict[str, Any]) -> tuple[str, float]:
    """The wrong key that opens most, and the share; one that is half the right one is near, and not among them."""
    kinds = ((kind, seen["share"]) for kind, seen in found["wrong_key"].items() if kind != "blended")
    return max(kinds, key=lambda pair: pair[1])


def blurred(key: Prompt, sigma: float, rows: int) -> list[Prompt]:
    pair = torch.stack([key.keys, key.values])
    draws = generator(0, "near key", sigma)
    noises = [sigma * float(pair.std()) * torch.randn(pair.shape, generator=draws).to(pair) for _ in range(_DRAWS)]
    found = [replace(key, keys=key.keys + k, values=key.values + v) for k, v in noises]
    if change := key.change:
        parts = [(part, sigma * float(part.std())) for part in (change.down, change.up)]
        found = [
            replace(near, change=LowRank(*(p + size * torch.randn(p.shape, generator=draws) for p, size in parts)))
            for near in found
        ]
    return [found[row % _DRAWS] for row in range(rows)]
