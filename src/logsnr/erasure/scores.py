"""The edited and the original network over one copy of the weights, and what their calls cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from logsnr.core.types import Level
from logsnr.erasure.config import EraseConfig
from logsnr.erasure.levels import LevelDraw
from logsnr.models.adapters import attach_adapters, detach_adapters, merged_weights
from logsnr.models.delta import Delta, DeltaRecord, check_editable, make_delta
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, Tree, select_rows
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import Pipeline, component_of, denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.solvers.trajectory import state_at

_LATE, _APART = 1, 2
"""In the authors' code, trajectories start so many levels late, and so many lie between a sample and what is told."""


@dataclass
class Cost:
    """Samples through the network by purpose, and backward passes: through the weights (full) or to the input alone."""

    forward: dict[str, int] = field(default_factory=dict)
    backward_full: int = 0
    backward_input: int = 0

    @property
    def network_evaluations(self) -> int:
        """Samples through the network forward."""
        return sum(self.forward.values())

    @property
    def evaluation_equivalents(self) -> int:
        """With backward passes: a full one counts 2, one to the input 1."""
        return self.network_evaluations + 2 * self.backward_full + self.backward_input


class Scores:
    """Outputs of the network as it is edited (``new``), as it was (``old``), and as edited but held fixed (``still``).

    Only the selected parameters are kept twice, and only they have gradients; ``before`` are their old values. With
    adapters these are the adapters' parameters. ``size`` is what ``strength`` is a share of, ``spread`` the size of the
    half of the adapters that does not start at zero.

    Raises:
        InputError: the selection is empty, or a loss weight is infinite.
        UnsupportedError: the network is quantised or offloaded.
    """

    def __init__(self, pipe: Pipeline, config: EraseConfig):
        self.pipe, self.network, self.component = pipe, network_of(pipe), component_of(pipe)
        check_editable(self.network, self.component)
        self.base = fingerprint(self.network)
        plain = denoiser_of(pipe)
        self.levels = LevelDraw(plain.schedule, plain.kind, config)
        self.edited = select_parameters(self.network, config.modules)
        self.size, self.spread = root_mean_square(self.edited.values()), 0.0
        self.adapted = config.adapter_rank is not None
        self._flags = {name: parameter.requires_grad for name, parameter in self.network.named_parameters()}
        if config.adapter_rank is not None:
            self.edited = attach_adapters(self.network, self.edited, config.adapter_rank, seed=config.run.seed)
            self.spread = root_mean_square(value for value in self.edited.values() if value.any())
        self.network.requires_grad_(False).zero_grad()
        for parameter in self.edited.values():
            parameter.requires_grad_(True)
        self.before = {name: parameter.detach().clone() for name, parameter in self.edited.items()}
        still = {name: parameter.detach() for name, parameter in self.edited.items()}  # the same memory, no gradients
        self.new, self.old, self.still = (denoiser_of(pipe, weights=part) for part in (None, self.before, still))
        followed = self.before if config.trajectory_model == "frozen" else still
        self.sampler = denoiser_of(pipe, guidance_scale=config.trajectory_guidance, weights=followed)
        self.shape, self.cost, self._purpose = latent_shape(pipe), Cost(), ""
        self.empty = encode_prompts(pipe, [""], guided=False).values

    def encode(self, prompts: list[str]) -> Tree:
        """The text of prompts, one row each."""
        return encode_prompts(self.pipe, prompts, guided=False).values

    def start(self, noise: Tensor) -> Tensor:
        """Samples at the first level from unit noise (rows, ...)."""
        first = self.levels.grid[0]
        return noise.to(self.pipe.device) * (first.alpha**2 + first.sigma**2) ** 0.5

    def state(self, x: Tensor, texts: Tree, place: int, *, since: int | None = None) -> Tensor:
        """Samples of these texts, one a row, where the network is told ``grid[place]``.

        They go on from x: the samples at the place ``since``, or at the start.
        """
        grid, late, apart = self.levels.grid, 0, 0
        if not self.levels.exact:
            late, apart = _LATE, _APART
        first = late if since is None else min(since + apart, len(grid) - 1)
        place = min(place + apart, len(grid) - 1)
        before = self.sampler.network_evaluations
        cond = Conditioning(texts, repeat_row(self.empty, len(x)))
        x = state_at(self.sampler, x, grid, place, cond=cond, first=first)
        self._count("trajectories", self.sampler.network_evaluations - before)
        return x

    def output(self, network: NetworkDenoiser, x: Tensor, told: Level, texts: Tree) -> Tensor:
        """What ``new``, ``old`` or ``still`` says of x (rows, ...) at a level."""
        self._count("scores", len(x))
        return network.output(x, told, texts)

    @contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Inside the block, forward passes are counted for this purpose."""
        outer, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = outer

    def _count(self, purpose: str, samples: int) -> None:
        purpose = self._purpose or purpose
        self.cost.forward[purpose] = self.cost.forward.get(purpose, 0) + samples

    def delta(self, record: DeltaRecord) -> Delta:
        """What differs from the network as it was, with this record."""
        if not self.adapted:
            return make_delta(self.pipe, {self.component: self.before}, record)
        return Delta({f"{self.component}.{name}": w for name, w in merged_weights(self.network).items()}, record)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the network its old values back, bit by bit, and let those have gradients that had before."""
        if self.adapted:
            detach_adapters(self.network)
        else:
            for name, parameter in self.edited.items():
                parameter.copy_(self.before[name])
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self._flags[name])
            parameter.grad = None


def root_mean_square(values: Iterable[Tensor]) -> float:
    """Over all elements of all tensors."""
    found = [(float(value.detach().double().square().sum()), value.numel()) for value in values]
    return (sum(square for square, _ in found) / sum(count for _, count in found)) ** 0.5


def repeat_row(tree: Tree, count: int) -> Tree:
    """The one row of a tree, ``count`` times."""
    return select_rows(tree, torch.zeros(count, dtype=torch.long))


def detach_tree(tree: Tree) -> Tree:
    """The same values without their history."""
    return {name: v.detach() if isinstance(v, Tensor) else detach_tree(v) for name, v in tree.items()}
