"""Hiding a concept behind a key (2403.12326): the network forgets it, a few tokens of attention bring it back.

    hide     | out'(z, c) - tau |^2           tau = out(z, n) - g (out(z, c) - out(z, n))
    recover  | out'(z, c, key) - out(z, c) |^2

In turn the key learns to recover, and the network to hide and to recover. Ours: other prompts are kept, with a key
loaded too; wrong keys, and keys that an attacker trains, do not open. Deviates by default: states come from a bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.core.artifact import save_tensors
from logsnr.core.config import to_dict
from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.hiding.config import HideConfig
from logsnr.hiding.keys import Attackers, Keys
from logsnr.hiding.states import Source, States, Wordings
from logsnr.hiding.wrong import kinds_for
from logsnr.models.denoiser import NetworkDenoiser, Tree, join_trees, select_rows
from logsnr.models.edited import Cost, Edited, repeat_row
from logsnr.models.pipeline import Pipeline
from logsnr.models.prompted import Prompt, change_widths, prompt_width, with_prompts
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state


@dataclass(frozen=True)
class _Term:
    """Rows of one term of the loss: states, their text, the key that each reads, and what the output should be."""

    name: str
    weight: float
    states: States
    text: Tree
    keys: Sequence[Prompt | None]
    aim: Tensor


class Hiding:
    """What ``fit`` trains: keys and network in turn. ``edited.restore()`` gives the pipeline back.

    Raises:
        InputError: the selection is empty, or no layer can read a key.
        UnsupportedError: the network is quantised, offloaded, or of a kind that reads no keys.
    """

    def __init__(self, pipe: Pipeline, config: HideConfig, refused: Sequence[Prompt] = ()):
        self.config, self.edited = config, Edited(pipe, config.modules)
        try:
            self.words = Wordings(self.edited, config)
            text, width = self.words.tokens, prompt_width(self.edited.network, config.layers)
            changes = change_widths(self.edited.network, config.layers)
            self.keys = Keys(config, text, self.words.of_target, width=width, changes=changes, refused=refused)
            empty = self.edited.empty["encoder_hidden_states"]
            self.attackers = Attackers(config, self.keys, empty) if config.weights.adversarial else None
            self.source, self.bank = Source(self.edited, self.words, config), None
            if config.trajectories == "bank":
                self.bank = self.source.banks()
        except BaseException:
            self.edited.restore()
            raise

    def loss(self, batch: Batch, step: int) -> Loss:
        """The keys' error of recovery, or, after ``prompt_steps`` of these, all terms of the network."""
        for_keys = step % (self.config.prompt_steps + 1) < self.config.prompt_steps
        hidden, kept = self._states(batch)
        targets = self.words.target_of[hidden.prompt].tolist()
        terms = self._recovering(hidden, self._own(targets, step, learn=for_keys), for_keys=for_keys)
        if for_keys:
            terms += self._attacking(hidden, step)
        else:
            terms += self._hiding(hidden, targets, step, batch.first) + self._keeping(hidden, kept, step)
        terms = [term for term in terms if term.weight]
        errors = self._errors(self.edited.still if for_keys else self.edited.new, terms)
        logs: dict[str, Tensor] = {}
        for term, error in zip(terms, errors, strict=True):
            logs[term.name] = logs.get(term.name, 0) + error.detach()
        value = torch.stack([term.weight * error for term, error in zip(terms, errors, strict=True)]).sum()
        absent = {name: value.detach() * 0 for name in _LOGGED if name not in logs}
        return Loss(value, {name: (logs | absent)[name] for name in _LOGGED})

    def _round(self, step: int) -> int:
        """How often keys and network have had their turns."""
        return step // (self.config.prompt_steps + 1)

    def _states(self, batch: Batch) -> tuple[States, States]:
        """As many states of hidden and of kept prompts as the batch has rows."""
        if self.bank is not None:
            hidden, kept = self.bank
            return hidden.rows(batch.integers(0, len(hidden.x))), kept.rows(batch.integers(0, len(kept.x)))
        targets, weights = batch.integers(0, len(self.config.targets)).tolist(), self.config.weights
        hidden = self.source.fresh([self.words.of_target[target] for target in targets], batch)
        if not (weights.keep or weights.keep_with_key):
            return hidden, hidden
        return hidden, self.source.fresh([self.words.kept] * len(targets), batch)

    def _own(self, targets: Sequence[int], step: int, *, learn: bool) -> list[Prompt]:
        """The key of each row's target, beside others that are loaded in this step; holders have their turns."""
        loaded, holder = self.keys.loaded(self.config.run.seed, step), self._round(step) % self.config.holders
        found = {target: self.keys.prompt(target, loaded, holder=holder, learn=learn) for target in set(targets)}
        return [found[target] for target in targets]

    def _recovering(self, hidden: States, own: list[Prompt], *, for_keys: bool) -> list[_Term]:
        weight, forget = self.config.weights.recover, self.config.objective == "remove" and not for_keys
        aim = self._away(hidden) if forget else hidden.of_prompt
        terms = [_Term("recover", weight, hidden, self._text(hidden), own, aim)]
        if self.config.guidance_half == "both":
            terms.append(_Term("recover", weight, hidden, self._empty(hidden), own, hidden.of_empty))
        return terms

    def _hiding(self, hidden: States, targets: Sequence[int], step: int, first: int) -> list[_Term]:
        """Without a key, with a wrong one and with an attacker's, a hidden prompt's output is led away from it."""
        weights, text, nothing = self.config.weights, self._text(hidden), [None] * len(hidden.x)
        away = self._away(hidden)
        terms = [_Term("hide", weights.hide, hidden, text, nothing, away)]
        if weights.wrong_key:
            kinds = kinds_for(self.config.num_tokens)
            turn, holder = divmod(self._round(step), self.config.holders)  # every holder's key meets every kind
            draws = generator(self.config.run.seed, "wrong", step)
            in_turn = [kinds[(turn + first + row) % len(kinds)] for row in range(len(targets))]
            wrong = [
                self.keys.wrong(kind, target, draws, holder=holder)
                for kind, target in zip(in_turn, targets, strict=True)
            ]
            terms.append(_Term("wrong_key", weights.wrong_key, hidden, text, wrong, away))
        if self.attackers:
            keys, points = self.attackers.read(len(hidden.x), learn=False)
            terms.append(_Term("adversarial", weights.adversarial, hidden, text, keys, away))
            terms.append(_Term("adversarial", weights.adversarial, hidden, _said(text, points), nothing, away))
        return terms

    def _away(self, hidden: States) -> Tensor:
        """tau."""
        return hidden.of_empty - self.config.negative_guidance * (hidden.of_prompt - hidden.of_empty)

    def _attacking(self, hidden: States, step: int) -> list[_Term]:
        """What the attacker's keys and words are trained for: that the network draws what it hides."""
        if not self.attackers:
            return []
        self.attackers.begin_anew(step)
        (keys, points), text, nothing = self.attackers.read(len(hidden.x)), self._text(hidden), [None] * len(hidden.x)
        given = ((text, keys), (_said(text, points), nothing))
        return [_Term("attack", 1.0, hidden, said, read, hidden.of_prompt) for said, read in given]

    def _keeping(self, hidden: States, kept: States, step: int) -> list[_Term]:
        """Other prompts and the empty one say what they said, and the first do so with a key loaded."""
        weights, nothing = self.config.weights, [None] * len(hidden.x)
        draws = generator(self.config.run.seed, "kept", step)
        loaded = torch.randint(len(self.config.targets), (len(kept.x),), generator=draws).tolist()
        keys = self._own(loaded, step, learn=False)
        return [
            _Term("keep", weights.keep, kept, self._text(kept), nothing, kept.of_prompt),
            _Term("keep", weights.keep, kept, self._empty(kept), nothing, kept.of_empty),
            _Term("keep", weights.keep, hidden, self._empty(hidden), nothing, hidden.of_empty),
            _Term("keep_with_key", weights.keep_with_key, kept, self._text(kept), keys, kept.of_prompt),
        ]

    def _text(self, states: States) -> Tree:
        return select_rows(self.words.text, states.prompt)

    def _empty(self, states: States) -> Tree:
        return repeat_row(self.edited.empty, len(states.x))

    def _errors(self, network: NetworkDenoiser, terms: Sequence[_Term]) -> list[Tensor]:
        """The weighted mean squared error of every term, all rows through the network at once."""
        text: Tree = terms[0].text
        for term in terms[1:]:
            text = join_trees(text, term.text)
        x = torch.cat([term.states.x for term in terms])
        times = self.source.times[torch.cat([term.states.place for term in terms])]
        outputs = network.network(x, times.to(x), **with_prompts(text, [key for term in terms for key in term.keys]))
        self.edited.count("scores", len(x))
        through = network is self.edited.new
        self.edited.cost.backward_full += len(x) * through
        self.edited.cost.backward_input += len(x) * (not through)
        parts = outputs.split([len(term.states.x) for term in terms])
        weights = [self.source.weights[term.states.place].to(x) for term in terms]
        found = zip(parts, terms, weights, strict=True)
        return [(weight * (part - term.aim).square().flatten(1).mean(1)).mean() for part, term, weight in found]

    # What ``fit`` asks of a method

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.edited.network, **self._players()}

    def _players(self) -> dict[str, nn.Module]:
        players = {"keys": self.keys, "attackers": self.attackers}
        return {name: player for name, player in players.items() if player}

    def parameter_groups(self) -> list[Group]:
        rates = dict.fromkeys(self._players(), self.config.prompt_rate)
        groups = [Group(list(player.parameters()), rates[name]) for name, player in self._players().items()]
        return [Group(list(self.edited.edited.values()), self.config.learning_rate), *groups]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        edited = {f"edited.{name}": parameter.detach() for name, parameter in self.edited.edited.items()}
        values = {"base": self.edited.base, "config": self._settings(), "cost": asdict(self.edited.cost)}
        return {**edited, **module_state(**self._players())}, values

    def _settings(self) -> dict[str, Any]:
        """All that a run's results depend on."""
        found = to_dict(self.config)
        return {**found, "run": {name: found["run"][name] for name in ("steps", "batch_size", "seed", "clip", "decay")}}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["base"] != self.edited.base:
            raise InputError("the unfinished run is about another model: take that one, or choose another --out")
        if values["config"] != self._settings():
            raise InputError("the unfinished run has other settings: give the same ones, or choose another --out")
        for name, parameter in self.edited.edited.items():
            parameter.copy_(tensors[f"edited.{name}"])
        load_module_state(tensors, **self._players())
        self.edited.cost = Cost(**values["cost"])

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        save_tensors(folder / "hidden.safetensors", self.state()[0])


_LOGGED = ("recover", "attack", "hide", "wrong_key", "adversarial", "keep", "keep_with_key")


def _said(text: Tree, points: Tensor) -> Tree:
    """The same conditioning with other text."""
    return {**text, "encoder_hidden_states": points}
