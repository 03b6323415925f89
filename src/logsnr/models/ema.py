"""Exponential moving averages of weights, through torch's AveragedModel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Network = TypeVar("Network", bound=nn.Module)


class Average(AveragedModel, Generic[Network]):
    """AveragedModel whose average has the type of its network."""

    @property
    def network(self) -> Network:
        """The averaged network."""
        return cast(Network, self.module)


def averaged(module: Network, decay: float) -> Average[Network]:
    """A copy of ``module`` that follows it with ``update_parameters``.

    The decay warms up as (1 + n) / (10 + n), so that the first steps are forgotten soon.
    """

    def average(old: Tensor, new: Tensor, num_averaged: Tensor | int) -> Tensor:
        if not old.is_floating_point():
            return new
        num = float(num_averaged)
        return old.lerp(new.to(old.dtype), 1 - min(decay, (1 + num) / (10 + num)))

    return Average(module, avg_fn=average, use_buffers=True)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move a copy of a module towards it, by one minus the decay."""
    for old, new in zip(average.parameters(), module.parameters(), strict=True):
        old.lerp_(new, 1 - decay)


@contextmanager
def standing_in(module: nn.Module, other: nn.Module | None) -> Iterator[None]:
    """Inside the block the module has the weights of ``other``, a copy of it, if there is one; without gradients."""
    pairs = list(zip(module.parameters(), other.parameters(), strict=True)) if other else []

    def exchange() -> None:
        for ours, theirs in pairs:
            ours.data, theirs.data = theirs.data, ours.data

    exchange()
    try:
        yield
    finally:
        exchange()
