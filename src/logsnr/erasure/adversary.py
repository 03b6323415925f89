"""Who chooses the concept that an erasure would hurt most, and that is therefore held in place (2410.15618).

Each adversary gives, for the targets of a batch, the text of one chosen concept a row. The paper's is a Gumbel-softmax
over candidates, whose logits climb the loss that the network descends. Searching all candidates (``Exhaustive``),
drawing blindly (``Drawn``), leaving the words for any embedding (``Continuous``) and any direction (``Directions``) are
its controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.models.denoiser import Tree, select_rows
from logsnr.train.method import Batch

_TEXT = "encoder_hidden_states"
Search = Callable[[int, Tree], Tensor]
"""The loss (n,) of holding each row of a tree in place while a target is erased."""


class Adversary(nn.Module):
    """One candidate a row: ``texts`` is the text of all candidates, ``allowed`` (targets, n) who may have which."""

    def __init__(self, texts: Tree, allowed: Tensor):
        super().__init__()
        self.texts, self.allowed = texts, allowed

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        """The chosen text of each row, for its target (rows,)."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after each step of the optimiser."""


class Drawn(Adversary):
    """Any allowed candidate with equal chance."""

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        allowed = self.allowed[targets.cpu()]
        place = (batch.uniform().cpu() * allowed.sum(1)).long() + 1  # the place-th allowed one
        return select_rows(self.texts, (allowed.cumsum(1) == place[:, None]).long().argmax(1))


class Gumbel(Adversary):
    """A draw by softmax(logits), whose gradient is that of a mixture at the temperature (1611.01144).

    At any temperature the hard draw has the same chances; the temperature scales a gradient, which Adam undoes.
    """

    def __init__(self, texts: Tree, allowed: Tensor, *, temperature: float, hard: bool):
        super().__init__(texts, allowed)
        self.temperature, self.hard = temperature, hard
        self.logits = nn.Parameter(torch.zeros(allowed.shape))

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        logits = self.logits.masked_fill(~self.allowed.to(self.logits.device), -torch.inf)[targets]
        noise = -(-batch.uniform(logits.shape[1]).clamp(1e-20, 1 - 1e-7).log()).log()
        mixture = ((logits.log_softmax(1) + noise) / self.temperature).softmax(1)
        if not self.hard:
            return mix_rows(self.texts, mixture)
        drawn = nn.functional.one_hot(mixture.argmax(1), mixture.shape[1]).to(mixture)
        return mix_rows(self.texts, drawn + mixture - mixture.detach())

    def chances(self) -> Tensor:
        """The chance of each candidate (targets, n)."""
        return self.logits.detach().cpu().masked_fill(~self.allowed, -torch.inf).softmax(1)


class Exhaustive(Adversary):
    """The allowed candidate of the greatest loss, looked for afresh every few steps."""

    def __init__(self, texts: Tree, allowed: Tensor, *, every: int):
        super().__init__(texts, allowed)
        self.every = every
        self.age: dict[int, int] = {}
        self.found: dict[int, int] = {}

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        for target in sorted(set(targets.tolist())):
            if self.age.get(target, self.every) >= self.every:
                places = self.allowed[target].nonzero()[:, 0]
                losses = search(target, select_rows(self.texts, places))
                self.found[target], self.age[target] = int(places[losses.argmax().cpu()]), 0
        return select_rows(self.texts, torch.tensor([self.found[target] for target in targets.tolist()]))

    def after_step(self) -> None:
        self.age = {target: age + 1 for target, age in self.age.items()}

    def get_extra_state(self) -> Tensor:
        rows = [(target, self.found[target], self.age[target]) for target in sorted(self.found)]
        return torch.tensor(rows, dtype=torch.long).reshape(-1, 3)

    def set_extra_state(self, state: Tensor) -> None:
        self.found = {target: place for target, place, _ in state.tolist()}
        self.age = {target: age for target, _, age in state.tolist()}


class Continuous(Adversary):
    """An embedding of its own for each target, that climbs from the anchor by steps of a share of its norm."""

    def __init__(self, texts: Tree, num_targets: int, *, rate: float):
        super().__init__(texts, torch.ones(num_targets, 1, dtype=torch.bool))
        self.rate = rate
        self.points = nn.Parameter(texts[_TEXT][:1].repeat_interleave(num_targets, 0).clone())

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        return {**select_rows(self.texts, torch.zeros_like(targets)), _TEXT: self.points[targets]}

    @torch.no_grad()
    def after_step(self) -> None:
        if self.points.grad is not None:
            rows, slope = self.points.flatten(1), self.points.grad.flatten(1)
            length = rows.norm(dim=1, keepdim=True) / slope.norm(dim=1, keepdim=True).clamp(min=1e-12)
            self.points.add_(self.rate * (length * slope).view_as(self.points))
            self.points.grad = None


class Directions(Adversary):
    """Random directions about as long as a target's text, the rarer the nearer they point to it (SPM, 2312.16145).

    ``aims`` is the text of the targets. One of eight draws is taken: the first that its chance, 1 - cosine, lets pass.
    All but the text itself, such as pooled text, is the ``anchor``'s. SPM's gate by likeness to a prompt is left out.
    """

    def __init__(self, aims: Tree, anchor: Tree):
        super().__init__(aims, torch.ones(len(aims[_TEXT]), 1, dtype=torch.bool))
        self.anchor = anchor

    def choose(self, targets: Tensor, batch: Batch, search: Search) -> Tree:
        text = self.texts[_TEXT][targets]
        drawn = batch.normal(8, *text.shape[1:]).flatten(2)
        near = nn.functional.cosine_similarity(drawn, text.flatten(1)[:, None], dim=2)
        first = (batch.uniform(8) < 1 - near).long().argmax(1)
        taken = drawn[torch.arange(len(drawn)), first]
        length = text.flatten(1).norm(dim=1) * (0.8 + 0.4 * batch.uniform())
        held = select_rows(self.anchor, torch.zeros_like(targets))
        return {**held, _TEXT: (taken * (length / taken.norm(dim=1))[:, None]).view_as(text)}


def mix_rows(tree: Tree, weights: Tensor) -> dict[str, Any]:
    """Mixtures of a tree's rows (n): those of weights (m, n), the same for every tensor, pooled text included.

    What is no real number, such as a mask, is that of the greatest weight.
    """
    mixed: dict[str, Any] = {}
    for name, value in tree.items():
        if not isinstance(value, Tensor):
            mixed[name] = mix_rows(value, weights)
        elif value.is_floating_point():
            mixed[name] = torch.tensordot(weights.to(value), value, 1)
        else:
            mixed[name] = value[weights.argmax(1)]
    return mixed


def allow(names: Sequence[str], lists: Sequence[Sequence[str]]) -> Tensor:
    """Who may have which name: (lists, names), true where a list holds it."""
    places = {name: place for place, name in enumerate(names)}
    allowed = torch.zeros(len(lists), len(names), dtype=torch.bool)
    for row, found in enumerate(lists):
        allowed[row, [places[name] for name in found]] = True
    return allowed
