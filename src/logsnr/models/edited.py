"""The edited and the original network over one copy of the weights, and what their calls cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from logsnr.core.types import Level
from logsnr.models.adapters import attach_adapters, detach_adapters, merged_weights
from logsnr.models.delta import Delta, DeltaRecord, check_editable, make_delta
from logsnr.models.denoiser import NetworkDenoiser, Tree, select_rows
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import Pipeline, component_of, denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.models.swapped import has_checkpoints
from logsnr.schedules.origins import refuse_few_step


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


class Edited:
    """A pipeline's network as it is edited (``new``), as it was (``old``), and as edited but held fixed (``still``).

    Only the selected parameters are kept twice, and only they have gradients; ``before`` are their old values. With
    adapters these are the adapters' parameters. ``size`` is the root mean square of the selected parameters, ``spread``
    that of the half of the adapters that does not start at zero. ``restore`` gives the network its old values back.

    Raises:
        InputError: the selection is empty.
        UnsupportedError: the network is quantised or offloaded, or a consistency model.
    """

    def __init__(self, pipe: Pipeline, modules: str | Iterable[str], *, adapter_rank: int | None = None, seed: int = 0):
        refuse_few_step(pipe.scheduler.config, "edit the model that it was trained from")
        self.pipe, self.network, self.component = pipe, network_of(pipe), component_of(pipe)
        check_editable(self.network, self.component)
        self.base = fingerprint(self.network)
        self.edited = select_parameters(self.network, modules)
        self.size, self.spread = root_mean_square(self.edited.values()), 0.0
        self.adapted = adapter_rank is not None
        self._flags = {name: parameter.requires_grad for name, parameter in self.network.named_parameters()}
        if adapter_rank is not None:
            self.edited = attach_adapters(self.network, self.edited, adapter_rank, seed=seed)
            self.spread = root_mean_square(value for value in self.edited.values() if value.any())
        self.network.requires_grad_(False).zero_grad()
        for parameter in self.edited.values():
            parameter.requires_grad_(True)
        self.before = {name: parameter.detach().clone() for name, parameter in self.edited.items()}
        self.fixed = {name: parameter.detach() for name, parameter in self.edited.items()}  # the same memory
        self.new, self.old, self.still = (denoiser_of(pipe, weights=part) for part in (None, self.before, self.fixed))
        self.shape, self.cost, self._purpose = latent_shape(pipe), Cost(), ""
        self.empty = encode_prompts(pipe, [""], guided=False).values

    def encode(self, prompts: list[str]) -> Tree:
        """The text of prompts, one row each."""
        return encode_prompts(self.pipe, prompts, guided=False).values

    def output(self, network: NetworkDenoiser, x: Tensor, told: Level, texts: Tree) -> Tensor:
        """What ``new``, ``old`` or ``still`` says of x (rows, ...) at a level.

        With gradient checkpointing on, the backward pass computes it again, so that graphs do not pile up.
        """
        self.count("scores", len(x))
        if torch.is_grad_enabled() and has_checkpoints(self.network):
            return checkpoint(network.output, x, told, texts, use_reentrant=False)
        return network.output(x, told, texts)

    @contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Inside the block, forward passes are counted for this purpose."""
        outer, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = outer

    def count(self, purpose: str, samples: int) -> None:
        """Count samples through the network, for this purpose unless the block around says another."""
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
