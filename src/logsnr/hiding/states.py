"""Noisy samples that a hiding is trained on, with what the original network says of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.core.types import Level
from logsnr.hiding.config import HideConfig
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, Tree, select_rows
from logsnr.models.edited import Edited, repeat_row
from logsnr.models.pipeline import denoiser_of
from logsnr.schedules.grids import uniform_time
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.sample import sample_steps
from logsnr.solvers.trajectory import loss_weights, state_at
from logsnr.train.method import Batch

_BATCH = 64


@dataclass(frozen=True)
class States:
    """Samples x (n, ...), the place of each in a grid, its prompt, and the original's outputs for that and for none."""

    x: Tensor
    place: Tensor
    prompt: Tensor
    of_prompt: Tensor
    of_empty: Tensor

    def rows(self, rows: Tensor) -> States:
        """Some of them."""
        parts = [getattr(self, name) for name in self.__dataclass_fields__]
        return States(*(part[rows.to(part.device)] for part in parts))


class Wordings:
    """The prompts of each target and of what is kept, encoded once: ``text`` has a row for each.

    ``of_target`` are the rows of each target's prompts, ``kept`` those of the anchors; ``target_of`` (rows,) is the
    target of each, -1 for anchors.
    """

    def __init__(self, edited: Edited, config: HideConfig):
        wordings = config.wordings or tuple((target,) for target in config.targets)
        prompts = [*(prompt for words in wordings for prompt in words), *(config.anchors or ("",))]
        self.text = edited.encode(prompts)
        ends = torch.tensor([len(words) for words in wordings]).cumsum(0).tolist()
        self.of_target = [torch.arange(end - len(words), end) for end, words in zip(ends, wordings, strict=True)]
        self.kept = torch.arange(ends[-1], len(prompts))
        self.target_of = torch.full((len(prompts),), -1)
        for target, rows in enumerate(self.of_target):
            self.target_of[rows] = target

    @property
    def tokens(self) -> Tensor:
        """The text itself (rows, length, width)."""
        return self.text["encoder_hidden_states"]

    def draw(self, rows: Sequence[Tensor], uniform: Tensor) -> Tensor:
        """One of its rows for each row of prompts, from a uniform draw."""
        return torch.stack([mine[int(draw * len(mine))] for mine, draw in zip(rows, uniform, strict=True)])


class Source:
    """Where states come from: levels, their weights, and the two ways of making samples."""

    def __init__(self, edited: Edited, words: Wordings, config: HideConfig):
        self.edited, self.words, self.config = edited, words, config
        plain = edited.new
        self.grid = uniform_time(plain.schedule, config.trajectory_steps)[:-1]
        self.weights = torch.tensor(loss_weights(plain.kind, self.grid, config.loss_weighting))
        self.times = torch.tensor([plain.timestep_of(level) for level in self.grid])

    def banks(self) -> tuple[States, States]:
        """States of all targets, and of what is kept."""
        count, words = self.config.bank_size, self.words
        hidden = self.bank(words.of_target, count * len(words.of_target), key="hidden")
        return hidden, self.bank([words.kept], 2 * count, key="kept")

    def bank(self, rows: Sequence[Tensor], count: int, *, key: str) -> States:
        """All states of ``count`` trajectories of the original: prompts of one of ``rows``, in turn."""
        noise = generator(self.config.run.seed, "bank", key)
        parts = []
        sampler = self._sampler(self.edited.before)
        for first in range(0, count, _BATCH):
            places = [rows[place % len(rows)] for place in range(first, min(first + _BATCH, count))]
            prompts = self.words.draw(places, torch.rand(len(places), generator=noise))
            x = self._start(torch.randn((len(places), *self.edited.shape), generator=noise))
            cond = self._guided(prompts)
            for place, state in enumerate([x, *sample_steps(sampler, x, self.grid, Exponential(1), cond=cond)]):
                parts.append(self._told(state, torch.full((len(x),), place), prompts))
        self.edited.count("bank", sampler.network_evaluations)
        return States(*(torch.cat(column) for column in zip(*(p.__dict__.values() for p in parts), strict=True)))

    def fresh(self, rows: Sequence[Tensor], batch: Batch) -> States:
        """One state a row at a level that all share, of the model as it is being trained."""
        place = int(batch.shared() * len(self.grid))
        prompts = self.words.draw(rows, batch.uniform())
        x, sampler = self._start(batch.normal(*self.edited.shape)), self._sampler(self.edited.fixed)
        x = state_at(sampler, x, self.grid, place, cond=self._guided(prompts))
        self.edited.count("trajectories", sampler.network_evaluations)
        return self._told(x, torch.full((len(x),), place), prompts)

    @torch.no_grad()
    def _told(self, x: Tensor, place: Tensor, prompts: Tensor) -> States:
        """What the original says of states at one level."""
        level: Level = self.grid[int(place[0])]
        text, empty = select_rows(self.words.text, prompts), repeat_row(self.edited.empty, len(x))
        said = [self.edited.output(self.edited.old, x, level, cond) for cond in (text, empty)]
        return States(x, place, prompts, *said)

    def _sampler(self, weights: dict[str, Tensor]) -> NetworkDenoiser:
        return denoiser_of(self.edited.pipe, guidance_scale=self.config.trajectory_guidance, weights=weights)

    def _guided(self, prompts: Tensor) -> Conditioning:
        text: Tree = select_rows(self.words.text, prompts)
        return Conditioning(text, repeat_row(self.edited.empty, len(prompts)))

    def _start(self, noise: Tensor) -> Tensor:
        first = self.grid[0]
        return noise.to(self.edited.pipe.device) * (first.alpha**2 + first.sigma**2) ** 0.5
