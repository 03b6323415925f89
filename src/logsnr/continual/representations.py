"""What queries and outputs of the cross-attention read: samples of it, since it depends on the noisy image.

Labelled reconstruction, as all of the projection here. Tokens are finite in number, so keys and values are kept
exactly; what is sampled here can be kept but nearly, as gradient projection memory does (2103.09762).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.continual.generator import ReplayGenerator
from logsnr.core.random import generator
from logsnr.data.labelled import LabelledData
from logsnr.schedules.schedule import levels_at

TIMES, COLUMNS = 8, 4096
_IMAGES = 16
"""Of each class, at each of the times."""


def kept_energy(experience: int) -> float:
    """The share of squares that is kept of what was sampled: more from experience to experience, as GPM has it."""
    return min(0.95 + 0.003 * experience, 1.0)


@torch.no_grad()
def attention_inputs(source: ReplayGenerator, data: LabelledData, *, seed: int) -> dict[str, Tensor]:
    """The inputs (at most 4096, width) of each query and output projection, by its weight's name in the UNet.

    Of 16 images a class, at 8 times spread evenly, half of them without their class.
    """
    draws = generator(seed, "representations")
    rows = torch.cat([_first(data.labels, label) for label in data.labels.unique().tolist()])
    items, seen = data.take(rows), dict[str, list[Tensor]]()
    modules = dict(source.unet.named_modules())
    wanted = {f"{name}.weight": modules[name] for name in modules if name.endswith(("attn2.to_q", "attn2.to_out.0"))}
    source.eval()
    with ExitStack() as stack:
        for name, module in wanted.items():
            stack.callback(module.register_forward_pre_hook(_keeping(seen.setdefault(name, []))).remove)
        for place in range(TIMES):
            time = (place + 0.5) / TIMES
            (level,) = levels_at(source.schedule, [time])
            noise = torch.randn(items["image"].shape, generator=draws)
            xt = level.alpha * items["image"] + level.sigma * noise
            dropped = torch.arange(len(rows)) % 2 == place % 2
            source(xt, torch.full((len(rows),), 1000 * time), **source.condition(items["label"], dropped))
    found = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: all_[torch.randperm(len(all_), generator=draws)[:COLUMNS]] for name, all_ in found.items()}


def _first(labels: Tensor, label: int) -> Tensor:
    return (labels == label).nonzero()[:_IMAGES, 0]


def _keeping(parts: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that keeps what a module reads, one vector a row."""

    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        parts.append(inputs[0].detach().flatten(0, -2))

    return hook
