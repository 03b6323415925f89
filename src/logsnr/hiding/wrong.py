"""Keys that must not open: noise, and what is left of a right key that was broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from logsnr.models.low_rank import LowRank
from logsnr.models.prompted import Prompt

WRONG = ("random", "half", "unpaired", "truncated", "other", "blended")
"""Kinds that training refuses in turn: fresh noise, half of the tokens replaced by noise, keys with the values of other
tokens, half of the tokens alone, another target's key, and a key drowned in as much noise."""
UNSEEN = ("swapped", "zero")
"""Kinds that it never meets: keys and values exchanged, and no numbers at all."""


def kinds_for(num_tokens: int, kinds: Sequence[str] = WRONG) -> list[str]:
    """The kinds that are wrong for a key of so many tokens: of one token, nothing can be cut or exchanged."""
    return [kind for kind in kinds if num_tokens > 1 or kind not in ("unpaired", "truncated")]


@torch.no_grad()
def wrong_key(
    kind: str, right: Prompt, draws: torch.Generator, *, size: float, others: Sequence[Prompt] = ()
) -> Prompt:
    """A wrong key of a kind of ``WRONG`` or ``UNSEEN``; noise is of ``size``. Without others, "other" is noise.

    What a key brings along is broken in the same way, with noise of its own size.
    """
    if kind == "other" and others:
        other = others[int(torch.randint(len(others), (), generator=draws))]
        return replace(other, layers=right.layers, half=right.half).detached()
    right = right.detached()
    pair = torch.stack([right.keys, right.values])
    keys, values = _broken(kind, pair, size, draws)
    if kind == "unpaired":
        keys = right.keys
    change = right.change and LowRank(
        right.change.down if kind == "unpaired" else _broken(kind, right.change.down, None, draws),
        _broken(kind, right.change.up, None, draws),
    )
    return replace(right, keys=keys, values=values, change=change)


def _broken(kind: str, part: Tensor, size: float | None, draws: torch.Generator) -> Tensor:
    """What is left of (2, count, width), for keys and for values; noise is of its own size, unless one is given."""
    scale = float(part.std()) if size is None else size
    noise = (scale * torch.randn(part.shape, generator=draws)).to(part)
    half = max(part.shape[1] // 2, 1)
    return {
        "half": torch.cat([part[:, half:], noise[:, :half]], 1),
        "unpaired": part.roll(1, 1),
        "truncated": part[:, :half],
        "blended": 0.5**0.5 * (part + noise),
        "swapped": part.flip(0),
        "zero": torch.zeros_like(part),
    }.get(kind, noise)
