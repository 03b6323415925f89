"""The states that an erasure is trained on, beside the edited and the original network."""

from __future__ import annotations

import torch
from torch import Tensor

from logsnr.erasure.config import EraseConfig
from logsnr.erasure.levels import LevelDraw
from logsnr.models.denoiser import Conditioning, Tree, split_tree
from logsnr.models.edited import Edited, repeat_row
from logsnr.models.pipeline import Pipeline, denoiser_of
from logsnr.models.swapped import has_checkpoints
from logsnr.solvers.trajectory import state_at

_LATE, _APART = 1, 2
"""In the authors' code, trajectories start so many levels late, and so many lie between a sample and what is told."""


class Scores(Edited):
    """The networks of an erasure, its levels, and samples on the way to what is erased or held.

    Raises:
        InputError: the selection is empty, or a loss weight is infinite.
        UnsupportedError: the network is quantised or offloaded.
    """

    def __init__(self, pipe: Pipeline, config: EraseConfig):
        plain = denoiser_of(pipe)
        self.levels = LevelDraw(plain.schedule, plain.kind, config)
        super().__init__(pipe, config.modules, adapter_rank=config.adapter_rank, seed=config.run.seed)
        followed = self.before if config.trajectory_model == "frozen" else self.fixed
        self.sampler = denoiser_of(pipe, guidance_scale=config.trajectory_guidance, weights=followed)

    def start(self, noise: Tensor) -> Tensor:
        """Samples at the first level from unit noise (rows, ...)."""
        first = self.levels.grid[0]
        return noise.to(self.pipe.device) * (first.alpha**2 + first.sigma**2) ** 0.5

    def state(self, x: Tensor, texts: Tree, place: int, *, since: int | None = None) -> Tensor:
        """Samples of these texts, one a row, where the network is told ``grid[place]``.

        They go on from x: the samples at the place ``since``, or at the start. With gradient checkpointing on, as a
        sign that memory is short, each goes by itself.
        """
        if len(x) > 1 and has_checkpoints(self.network):
            alone = zip(x.split(1), split_tree(texts, 1), strict=True)
            return torch.cat([self.state(row, text, place, since=since) for row, text in alone])
        grid, late, apart = self.levels.grid, 0, 0
        if not self.levels.exact:
            late, apart = _LATE, _APART
        first = late if since is None else min(since + apart, len(grid) - 1)
        place = min(place + apart, len(grid) - 1)
        before = self.sampler.network_evaluations
        cond = Conditioning(texts, repeat_row(self.empty, len(x)))
        x = state_at(self.sampler, x, grid, place, cond=cond, first=first)
        self.count("trajectories", self.sampler.network_evaluations - before)
        return x
