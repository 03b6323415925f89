"""Low-rank changes that a key brings along (2106.09685), for the projections of every layer that reads it.

    K = W_k c + U_k D_k c,  V = W_v c + U_v D_v c

The factors of all layers stand side by side, so that two keys are read at once as those of both, as their tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.core.errors import InputError

Pairs = Sequence[tuple[Any, Any]]
"""The projections to keys and to values, layer by layer."""


@dataclass(frozen=True)
class LowRank:
    """``down`` (2, rank, inputs of all layers) and ``up`` (2, rank, outputs of all layers), for keys and for values.

    Of a batch, both have its rows before these.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[-2]

    def factors(self, pairs: Pairs) -> dict[nn.Module, tuple[Tensor, Tensor]]:
        """Each projection's own: (..., rank, inputs) and (..., rank, outputs).

        Raises:
            InputError: they are those of other layers.
        """
        inputs, outputs = widths(pairs)
        fits = self.down.shape[-3::2] == (2, sum(inputs)) and self.up.shape[-3::2] == (2, sum(outputs))
        if not fits or self.up.shape[-2] != self.rank:
            raise InputError(
                f"a key's changes of {tuple(self.down.shape)} and {tuple(self.up.shape)} do not fit: these layers have "
                f"{sum(inputs)} inputs and {sum(outputs)} outputs"
            )
        found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        for side in (0, 1):
            down, up = (part.select(-3, side) for part in (self.down, self.up))
            cut = zip(pairs, down.split(inputs, -1), up.split(outputs, -1), strict=True)
            found |= {pair[side]: factors for pair, *factors in cut}
        return {module: (down, up) for module, (down, up) in found.items()}


def widths(pairs: Pairs) -> tuple[list[int], list[int]]:
    """Inputs and outputs of each layer's projections."""
    return [keys.in_features for keys, _ in pairs], [keys.out_features for keys, _ in pairs]


def changed(output: Tensor, text: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """A projection's output with the change of its text."""
    down, up = (part.to(text) for part in factors)
    return output + text @ down.transpose(-1, -2) @ up


def stacked(parts: Sequence[Tensor | None]) -> Tensor:
    """One a row (rows, ..., most, width) of parts (..., count, width) that differ in their count: filled up by zeros.

    None has none at all.
    """
    given = [part for part in parts if part is not None]
    most = max(part.shape[-2] for part in given)
    nothing = given[0].new_zeros(*given[0].shape[:-2], 0, given[0].shape[-1])
    full = [nothing if part is None else part for part in parts]
    return torch.stack([nn.functional.pad(part, (0, 0, 0, most - part.shape[-2])) for part in full])
