"""Keys that must not open: noise, and what is left of a right key that was broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

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
    """A wrong key of a kind of ``WRONG`` or ``UNSEEN``; noise is of ``size``. Without others, "other" is noise."""
    pair = torch.stack([right.keys, right.values])
    noise = (size * torch.randn(pair.shape, generator=draws)).to(pair)
    half = max(pair.shape[1] // 2, 1)
    found = {
        "half": torch.cat([pair[:, half:], noise[:, :half]], 1),
        "unpaired": torch.stack([pair[0], pair[1].roll(1, 0)]),
        "truncated": pair[:, :half],
        "blended": 0.5**0.5 * (pair + noise),
        "swapped": pair.flip(0),
        "zero": torch.zeros_like(pair),
    }.get(kind, noise)
    if kind == "other" and others:
        other = others[int(torch.randint(len(others), (), generator=draws))]
        found = torch.stack([other.keys, other.values])
    return replace(right, keys=found[0], values=found[1])
