"""Keys as they are trained: tokens for each target, what is loaded beside a row's own, and keys that must not open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.hiding.config import HideConfig
from logsnr.hiding.wrong import wrong_key
from logsnr.models.low_rank import LowRank
from logsnr.models.prompted import Prompt, side_by_side


class Keys(nn.Module):
    """The keys of all targets and holders: ``keys`` and ``values`` (targets, holders, tokens, width).

    With a rank they bring changes along (2106.09685), which are nothing at first: their two ``factors`` (targets,
    holders, 2, rank, size) have the two sizes of ``changes``.
    ``text`` (prompts, length, width of text) says how large tokens are, and ``own`` which prompts are each target's.
    ``refused`` are keys of earlier hidings, which must not open this one.

    Raises:
        InputError: keys should start from text whose width is not that of their tokens, or a refused key has another.
    """

    def __init__(
        self,
        config: HideConfig,
        text: Tensor,
        own: Sequence[Tensor],
        *,
        width: int,
        changes: tuple[int, int] = (0, 0),
        refused: Sequence[Prompt] = (),
    ):
        super().__init__()
        self.layers, self.read_by, self.refused = config.layers, config.guidance_half, list(refused)
        if any(prompt.keys.shape[1] != width for prompt in refused):
            raise InputError(f"a refused key does not fit: this network reads tokens of width {width}")
        if any(p.change and (p.change.down.shape[2], p.change.up.shape[2]) != changes for p in refused):
            raise InputError("a refused key brings low-rank changes of other layers along: read keys by its layers")
        unit = float(text.std())
        self.size = unit * (config.key_size if config.start == "random" else 1.0)
        draws = generator(config.run.seed, "keys")
        shape = (2, len(config.targets), config.holders, config.num_tokens, width)
        start = self.size * torch.randn(shape, generator=draws)
        if config.start == "concept":
            if text.shape[-1] != width:
                raise InputError("in this network keys are read beside no text as it is encoded: start from random")
            start = _of_concepts(text, own, config.num_tokens).cpu()[:, :, None] + 0.05 * start
        self.keys, self.values = nn.Parameter(start[0]), nn.Parameter(start[1])
        self.factors = nn.ParameterList()
        if rank := config.change_rank:
            inputs, outputs = ((len(config.targets), config.holders, 2, rank, size) for size in changes)
            self.factors.extend([torch.randn(inputs, generator=draws) / width**0.5, torch.zeros(outputs)])

    def prompt(self, target: int, loaded: Sequence[int] = (), *, holder: int = 0, learn: bool = True) -> Prompt:
        """A holder's key of a target, and those of others that are loaded too, in the order of targets.

        Unless they ``learn``, tokens have no gradients; changes always have.
        """
        return side_by_side([self._one(place, holder, learn=learn) for place in sorted({target, *loaded})])

    def made(self, target: int) -> list[Prompt]:
        """The finished keys of a target, one a holder."""
        found = [self._one(target, holder) for holder in range(self.keys.shape[1])]
        return [replace(_copied(key.detached()), half=self.read_by) for key in found]

    def _one(self, target: int, holder: int, *, learn: bool = True) -> Prompt:
        tokens = (part[target, holder] for part in (self.keys, self.values))
        keys, values = (part if learn else part.detach() for part in tokens)
        factors = [part[target, holder] for part in self.factors]
        change = LowRank(*factors) if factors else None
        return Prompt(keys, values, self.layers, change=change)

    def loaded(self, seed: int, step: int) -> list[int]:
        """Keys that are loaded in a step beside a row's own: none in half of the steps, else some of all."""
        draws = torch.rand(1 + len(self.keys), generator=generator(seed, "loaded", step))
        return [target for target, draw in enumerate(draws[1:].tolist()) if draw < 0.5] if draws[0] < 0.5 else []

    def wrong(self, kind: str, target: int, draws: torch.Generator, *, holder: int = 0) -> Prompt:
        """A key that must not open a target; see ``wrong_key``. Refused keys are among the others."""
        others = [self.prompt(other, holder=holder) for other in range(len(self.keys)) if other != target]
        right = self.prompt(target, holder=holder)
        return wrong_key(kind, right, draws, size=self.size, others=[*others, *self.refused])


class Attackers(nn.Module):
    """Keys and texts that an attacker trains while the network learns to resist them; now and then they begin anew."""

    count, every = 4, 100

    def __init__(self, config: HideConfig, keys: Keys, empty: Tensor):
        super().__init__()
        self.config, self.layers, self.size = config, keys.layers, keys.size
        self.register_buffer("empty", empty, persistent=False)
        self.keys, self.values = (nn.Parameter(torch.empty(self.count, *keys.keys.shape[2:])) for _ in range(2))
        self.points = nn.Parameter(empty.repeat(self.count, 1, 1))
        self.begin_anew(0)

    @torch.no_grad()
    def begin_anew(self, step: int) -> None:
        """Draw all anew, if the step is one where they are."""
        if step % (self.every * (self.config.prompt_steps + 1)):
            return
        draws = generator(self.config.run.seed, "attackers", step)
        for part in (self.keys, self.values, self.points):
            part.copy_(self.size * torch.randn(part.shape, generator=draws))
        self.points.mul_(0.1).add_(self.empty)

    def read(self, rows: int, *, learn: bool = True) -> tuple[list[Prompt | None], Tensor]:
        """An attacker's key and an attacker's text for each row, in turn."""
        keys, values, points = (p if learn else p.detach() for p in (self.keys, self.values, self.points))
        turns = [row % self.count for row in range(rows)]
        return [Prompt(keys[turn], values[turn], self.layers) for turn in turns], points[turns]


def _copied(key: Prompt) -> Prompt:
    """With numbers of its own."""
    change = key.change and LowRank(key.change.down.clone(), key.change.up.clone())
    return replace(key, keys=key.keys.clone(), values=key.values.clone(), change=change)


def _of_concepts(text: Tensor, own: Sequence[Tensor], num_tokens: int) -> Tensor:
    """The text of each target's first prompt behind its beginning, again and again (1, targets, tokens, width)."""
    rows = [text[int(prompts[0]), 1:] for prompts in own]
    return torch.stack([row[torch.arange(num_tokens) % len(row)] for row in rows])[None]
