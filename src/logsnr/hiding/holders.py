"""Whose key a prompt that got out is: holders' keys have little in common, so what is left of one tells."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from logsnr.core.errors import InputError
from logsnr.models.prompted import Prompt


def likeness(leaked: Prompt, holders: Sequence[Prompt]) -> list[float]:
    """How alike a leaked prompt is to each holder's key, from -1 to 1, whatever the order or number of its tokens.

    The mean over leaked tokens of the cosine to the nearest of a holder's, of keys and of values. A part of a key, and
    one with noise, stay near their own; between fresh keys of width d the nearest of m is some sqrt(2 ln(m) / d).

    Raises:
        InputError: widths differ.
    """
    if any(leaked.keys.shape[1] != key.keys.shape[1] for key in holders):
        raise InputError("the leaked prompt's tokens have another width than the keys': they are of other models")
    return [(_nearest(leaked.keys, key.keys) + _nearest(leaked.values, key.values)) / 2 for key in holders]


def by_chance(tokens: int, width: int) -> float:
    """About how alike a fresh key of so many tokens is to any other's."""
    return math.sqrt(2 * math.log(max(tokens, 2)) / width)


def _nearest(tokens: Tensor, own: Tensor) -> float:
    first, second = (nn.functional.normalize(part.double(), dim=1) for part in (tokens, own))
    return float((first @ second.T).amax(1).mean())
