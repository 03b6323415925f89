"""One denoiser for every network: network + schedule + prediction kind -> clean data and noise, with counted calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.types import Level, Prediction
from logsnr.models.guidance import SafeGuidance
from logsnr.schedules.prediction import Kind, check_start, noise_slope, predict
from logsnr.schedules.schedule import Schedule

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Conditioning:
    """Keyword arguments of a network: a tree of tensors whose first dimension is the sample.

    ``unconditional`` is the same tree for the empty or negative prompt; guidance needs it. ``avoided`` is that of a
    concept to keep away from; safe guidance needs it.
    """

    values: Tree
    unconditional: Tree | None = None
    avoided: Tree | None = None


class NetworkDenoiser:
    """A network behind the ``Denoiser`` contract, with classifier-free guidance (2207.12598) when scale is above 1.

    ``network(xt, timestep, **cond)`` returns a tensor like xt; ``timestep_of`` is the network's own time map. ``nfe``
    counts calls, ``network_evaluations`` samples through the network (a guided sample counts 2). ``safe`` guidance
    (2211.05105) also keeps away from a concept, and a sample counts 3.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        kind: Kind,
        timestep_of: Callable[[Level], float],
        *,
        guidance_scale: float = 1.0,
        safe: SafeGuidance | None = None,
    ):
        self.network, self.schedule, self.kind, self.timestep_of = network, schedule, kind, timestep_of
        self.guidance_scale, self.safe = guidance_scale, safe
        self.nfe = self.network_evaluations = 0
        self._joined: tuple[Conditioning, Tree] | None = None

    def __call__(self, xt: Tensor, level: Level, cond: Conditioning | None = None) -> Prediction:
        """Prediction at a level for xt (n, ...); cond rows match xt's.

        Raises:
            InputError: the network predicts noise, and at this level alpha is 0.
        """
        check_start(self.kind, level)
        timestep = torch.tensor(self.timestep_of(level), dtype=torch.float32, device=xt.device)
        self.nfe += 1
        if cond is None or cond.unconditional is None or self.guidance_scale <= 1:
            self.network_evaluations += len(xt)
            output = self.network(xt, timestep, **(cond.values if cond else {}))
            return predict(self.kind, xt, output, level)
        parts = 2 if self.safe is None else 3
        self.network_evaluations += parts * len(xt)
        outputs = self.network(torch.cat([xt] * parts), timestep, **self._all(cond)).chunk(parts)
        return predict(self.kind, xt, self._guided(outputs, level), level)

    def _guided(self, outputs: Sequence[Tensor], level: Level) -> Tensor:
        """The output that guidance makes of those for no prompt, for the prompt, and for what is avoided."""
        guided = outputs[0].lerp(outputs[1], self.guidance_scale)
        slope = noise_slope(self.kind, level) if self.safe else 0.0
        if not self.safe or not slope:
            return guided
        without, given, avoided = (slope * output for output in outputs)
        return guided - self.guidance_scale / slope * self.safe.avoid(without, given, avoided, level)

    def output(self, xt: Tensor, level: Level, cond: Tree) -> Tensor:
        """What the network itself says at a level, without guidance: its own kind of prediction, like xt."""
        self.nfe += 1
        self.network_evaluations += len(xt)
        timestep = torch.tensor(self.timestep_of(level), dtype=torch.float32, device=xt.device)
        return self.network(xt, timestep, **cond)

    def _all(self, cond: Conditioning) -> Tree:
        """The rows that guidance needs under each other; another conditioning begins another run."""
        if self._joined is None or self._joined[0] is not cond:
            assert cond.unconditional is not None
            joined = join_trees(cond.unconditional, cond.values)
            if self.safe:
                assert cond.avoided is not None
                self.safe.start()
                joined = join_trees(joined, cond.avoided)
            self._joined = (cond, joined)
        return self._joined[1]


def join_trees(first: Tree, second: Tree) -> dict[str, Any]:
    """Concatenate two trees of tensors of the same shape along the first dimension."""
    joined: dict[str, Any] = {}
    for name, value in first.items():
        other = second[name]
        joined[name] = torch.cat([value, other]) if isinstance(value, Tensor) else join_trees(value, other)
    return joined


def select_rows(tree: Tree, rows: Tensor | slice) -> dict[str, Any]:
    """The given rows of every tensor of a tree."""
    return {
        name: value[rows] if isinstance(value, Tensor) else select_rows(value, rows) for name, value in tree.items()
    }


def num_rows(tree: Tree) -> int:
    """How many samples a tree of tensors is for."""
    value = next(iter(tree.values()))
    return len(value) if isinstance(value, Tensor) else num_rows(value)


def split_tree(tree: Tree, size: int) -> list[dict[str, Any]]:
    """A tree in parts of at most ``size`` rows."""
    return [select_rows(tree, slice(first, first + size)) for first in range(0, num_rows(tree), size)]
