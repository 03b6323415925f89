"""Exact projection of weight updates: what linear layers said of old inputs, they go on to say (after 2103.09762).

A labelled reconstruction: the paper that this serves (2312.06710) released no code of its projection. The directions of
old inputs are kept as an orthonormal basis M, and A = W M as it was when each direction came. After every step of the
optimiser W becomes W - (W M - A) M', which undoes what momentum, decay, clipping or an average did along M, and nothing
else. Projecting the gradient alone does not do that under Adam.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from logsnr.core.errors import InputError

_NEGLIGIBLE = 1e-6
_FULL = 0.9


@dataclass
class _Basis:
    """Orthonormal directions (d, r) of the inputs of some weights, and what each weight (o, d) makes of them (o, r)."""

    directions: Tensor
    anchors: dict[str, Tensor] = field(default_factory=dict)


class GradientProjectionMemory:
    """Directions of old inputs, and the projection that keeps weights (o, d, ...) as they are along them.

    ``rank`` "exact" keeps every direction of the inputs down to 1e-6 of the greatest, "energy" as few as hold the share
    ``energy`` of their squares. ``apply`` "update" corrects the weights after each step; "gradient" projects gradients
    before it, as GPM does, which is exact under plain descent alone; "none" does nothing, for comparison.

    Raises:
        InputError: ``energy`` is outside (0, 1].
    """

    def __init__(
        self,
        *,
        rank: Literal["exact", "energy"] = "exact",
        energy: float = 0.999,
        apply: Literal["update", "gradient", "none"] = "update",
    ):
        if not 0 < energy <= 1:
            raise InputError(f"energy is {energy}: it is a share of squares, above 0 and at most 1")
        self.rank, self.energy, self.apply = rank, energy, apply
        self._bases: dict[str, _Basis] = {}

    @torch.no_grad()
    def remember(
        self, inputs: Tensor, weights: Mapping[str, Tensor], *, basis: str = "inputs", energy: float | None = None
    ) -> int:
        """Keep what the weights make of inputs (n, d) now; the number of new directions.

        Weights that share their inputs share one ``basis``: it is always given with the same weights, by name. An
        ``energy`` is for these inputs alone.

        Raises:
            InputError: another width, or other weights than this basis had before.
        """
        flat = {name: _flat(weight.detach()).double() for name, weight in weights.items()}
        columns = inputs.detach().double().T.cpu()
        wrong = [name for name, weight in flat.items() if weight.shape[1] != len(columns)]
        if wrong or not flat:
            raise InputError(f"inputs of width {len(columns)} are none of {wrong or ['no weight']}: give their own")
        known = self._bases.setdefault(basis, _Basis(torch.zeros(len(columns), 0, dtype=torch.float64)))
        if known.anchors and known.anchors.keys() != flat.keys():
            raise InputError(
                f"the basis {basis!r} is of {', '.join(known.anchors)}: give another name for other weights"
            )
        share = self.energy if energy is None and self.rank == "energy" else energy
        new = self._new_directions(columns, known.directions, share)
        known.directions = torch.cat([known.directions, new], 1)
        for name, weight in flat.items():
            before = known.anchors.get(name, torch.zeros(len(weight), 0, dtype=torch.float64))
            known.anchors[name] = torch.cat([before, weight.cpu() @ new], 1)
        if len(columns) > 1 and known.directions.shape[1] > _FULL * len(columns):
            warnings.warn(
                f"{known.directions.shape[1]} of {len(columns)} directions are kept, little is left to learn in: keep "
                "fewer inputs, or a share of their energy",
                stacklevel=2,
            )
        return new.shape[1]

    def _new_directions(self, columns: Tensor, kept: Tensor, energy: float | None) -> Tensor:
        if columns.shape[1] > len(columns):  # as many columns as rows say the same
            columns = torch.linalg.qr(columns.T, mode="r").R.T
        rest = columns
        for _ in range(2):  # once leaves rounding along what is kept
            rest = rest - kept @ (kept.T @ rest)
        left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
        greatest = torch.linalg.matrix_norm(columns, 2)
        if energy is None:
            return left[:, sizes > _NEGLIGIBLE * greatest]
        whole, had = columns.square().sum(), columns.square().sum() - rest.square().sum()
        enough = had + sizes.square().cumsum(0) >= energy * whole
        count = int((~enough).sum()) + 1 if had < energy * whole else 0
        return left[:, : min(count, int((sizes > _NEGLIGIBLE * greatest).sum()))]

    @torch.no_grad()
    def correct(self, weights: Mapping[str, Tensor]) -> None:
        """Bring weights, by their names, back along all kept directions; those that no basis knows stay."""
        for name, basis in self._of(weights):
            weight, anchor = weights[name], basis.anchors[name].to(weights[name].device)
            directions, flat = basis.directions.to(weight.device), _flat(weight).double()
            weight.copy_((flat - (flat @ directions - anchor) @ directions.T).view_as(weight))

    @torch.no_grad()
    def project_gradients(self, weights: Mapping[str, nn.Parameter]) -> None:
        """Take from the gradients what lies along kept directions."""
        for name, basis in self._of(weights):
            slope = weights[name].grad
            if slope is not None:
                directions, flat = basis.directions.to(slope.device), _flat(slope).double()
                slope.copy_((flat - (flat @ directions) @ directions.T).view_as(slope))

    def _of(self, weights: Mapping[str, Any]) -> list[tuple[str, _Basis]]:
        return [(name, basis) for basis in self._bases.values() for name in basis.anchors if name in weights]

    @torch.no_grad()
    def drift(self, inputs: Tensor, weights: Mapping[str, Tensor]) -> float:
        """How far weights say something else of remembered inputs (n, d) than when these came: the greatest share.

        Inputs have to lie in what is kept, as all that were remembered with "exact" rank do.
        """
        gaps = [0.0]
        for name, basis in self._of(weights):
            inside = inputs.detach().double().cpu() @ basis.directions
            now = inside @ (_flat(weights[name].detach()).double().cpu() @ basis.directions).T
            before = inside @ basis.anchors[name].T
            gaps.append(float(((now - before).norm(dim=1) / before.norm(dim=1).clamp(min=1e-30)).max()))
        return max(gaps)

    def attach(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """From now on every step of the optimiser keeps the module's weights; names are those in the module."""
        weights = dict(module.named_parameters())
        if self.apply == "update":
            optimizer.register_step_post_hook(lambda *_: self.correct(weights))
        elif self.apply == "gradient":
            optimizer.register_step_pre_hook(lambda *_: self.project_gradients(weights))

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Of each basis, how many directions are kept of how many there are."""
        return {name: (basis.directions.shape[1], len(basis.directions)) for name, basis in self._bases.items()}

    def state(self) -> dict[str, Tensor]:
        """All bases and anchors, as tensors by name."""
        tensors = {}
        for name, basis in self._bases.items():
            tensors[f"{name}/directions"] = basis.directions
            tensors |= {f"{name}/anchors/{weight}": anchor for weight, anchor in basis.anchors.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        self._bases = {}
        for key, value in tensors.items():
            name, _, rest = key.partition("/")
            basis = self._bases.setdefault(name, _Basis(value))
            if rest == "directions":
                basis.directions = value
            else:
                basis.anchors[rest.removeprefix("anchors/")] = value


def _flat(weight: Tensor) -> Tensor:
    """As a matrix of what each output takes from the inputs; a bias takes it from one that is always 1."""
    return weight.flatten(1) if weight.dim() > 1 else weight[:, None]
