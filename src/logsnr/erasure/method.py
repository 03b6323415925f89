"""Erasing undesirable concepts with adversarial preservation (2410.15618), and what it extends or is extended by.

Implemented: its objective, that of ESD (2303.07345) and of AGE (2501.18950), the search of a concept, several targets.
Deviates by default from the authors' code: one sample serves both players, the network is told the level of its sample,
levels are drawn by what they teach and cost, and there are 20 of them instead of 50.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.core.types import Level
from logsnr.erasure.adversary import Adversary, Continuous, Directions, Drawn, Exhaustive, Gumbel, allow
from logsnr.erasure.candidates import Candidates
from logsnr.erasure.config import EraseConfig
from logsnr.erasure.levels import normal, with_floor
from logsnr.erasure.robust import reaching
from logsnr.erasure.scores import Scores
from logsnr.models.delta import Delta, DeltaRecord, write_delta
from logsnr.models.denoiser import Tree, join_trees, num_rows, select_rows, split_tree
from logsnr.models.edited import Cost, detach_tree, repeat_row
from logsnr.models.pipeline import Pipeline
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.train.projection import GradientProjectionMemory


class OutputErasure:
    """Train the selected parameters so that a target's output is led away from it and a chosen concept's stays.

    ``candidates`` has the concepts that the adversary of each target may choose from. The errors are ``Scores``'s.
    """

    def __init__(self, pipe: Pipeline, config: EraseConfig, candidates: Sequence[Candidates] = ()):
        self.config, self.candidates = config, list(candidates)
        self.scores = Scores(pipe, config)
        try:
            self.texts, self.anchor = self.scores.encode(list(config.targets)), self.scores.encode([config.anchor])
            self.adversary = self._adversary()
            self.reaching, self.memory = reaching(self.scores, self.texts, config), self._memory()
        except BaseException:
            self.scores.restore()
            raise

    def _adversary(self) -> Adversary | None:
        config, encode = self.config, self.scores.encode
        if config.adversary == "none":
            return None
        if config.adversary == "pgd":
            return Continuous(self.anchor, len(config.targets), rate=config.adversary_lr)
        if config.adversary == "directions":
            return Directions(self.texts, self.anchor)
        lists = [found.names for found in self.candidates]
        if config.adversary == "fixed":
            lists = [config.preserved] * len(config.targets)
        names = list(dict.fromkeys(itertools.chain.from_iterable(lists)))
        texts, allowed = encode(names), allow(names, lists)
        if config.adversary == "gumbel":
            return Gumbel(texts, allowed, temperature=config.gumbel_temperature, hard=config.gumbel_hard)
        if config.adversary == "exhaustive":
            return Exhaustive(texts, allowed, every=config.search_every)
        return Drawn(texts, allowed)

    def _memory(self) -> GradientProjectionMemory | None:
        """What keeps the keys and values of protected prompts, by the projection of every step."""
        config, edited = self.config, self.scores.edited
        if not config.protected:
            if config.protect_others:
                raise InputError("nothing is named to protect, which only a world does by itself: say --protected")
            return None
        prompts = ["", *config.protected]
        parts = [self.scores.encode(prompts[first : first + 500]) for first in range(0, len(prompts), 500)]
        texts = torch.cat([part["encoder_hidden_states"].flatten(0, 1) for part in parts])
        if any(weight.shape[1:] != texts.shape[1:] for weight in edited.values()):
            raise InputError(
                "protected prompts are kept exactly where text becomes keys and values, and more is selected: say "
                "xattn-kv for the modules, of a network with cross-attention"
            )
        rank = "exact" if config.protected_energy == 1 else "energy"
        memory = GradientProjectionMemory(rank=rank, energy=config.protected_energy)
        memory.remember(texts, edited)
        return memory

    def loss(self, batch: Batch, step: int) -> Loss:
        """Erasing and holding on one level for all rows; where the players alternate, of the one whose step it is."""
        config, levels = self.config, self.scores.levels
        levels.chances = levels.chances or self.pilot()
        place, weight, told = levels.draw(batch.shared(), batch.shared())
        rows, noise = batch.integers(0, len(config.targets)), batch.normal(*self.scores.shape)
        learns = isinstance(self.adversary, Gumbel | Continuous)
        together = not learns or config.adversary_schedule == "simultaneous"
        models = together or step % config.adversary_steps == 0
        chosen = self._choose(batch, rows, noise, place, told)
        x, x_chosen = self._states(noise, rows, chosen, place, models)
        parts, scales = {}, {"erase": weight, "hold": weight * config.preservation_weight}
        if models:
            found = self._reached(x, told, rows, step)
            parts["erase"] = self.erasing(x, told, rows, self._aims(chosen, len(x)), found)
        if chosen is not None:
            adversary = learns and (together or not models)
            parts["hold"] = self.holding(x_chosen, told, chosen, model=models, adversary=adversary).mean()
        value = torch.stack([scales[name] * part for name, part in parts.items()]).sum()
        logs = {name: part.detach() for name, part in parts.items()}
        return Loss(value, {**logs, "place": value.detach().new_tensor(place)})

    def _choose(self, batch: Batch, rows: Tensor, noise: Tensor, place: int, told: Level) -> Tree | None:
        if self.adversary is None:
            return None
        return self.adversary.choose(rows, batch, partial(self.search, noise, place, told))

    def _states(
        self, noise: Tensor, rows: Tensor, chosen: Tree | None, place: int, models: bool
    ) -> tuple[Tensor, Tensor]:
        """Samples of the targets and of what is held, from one noise; those of the model's player only if needed."""
        start, texts = self.scores.start(noise), select_rows(self.texts, rows)
        if chosen is None or self.config.candidate_state == "shared":
            x = self.scores.state(start, texts, place)
            return x, x
        held = detach_tree(chosen)
        if not models:
            x = self.scores.state(start, held, place)
            return x, x
        x, x_chosen = self.scores.state(torch.cat([start, start]), join_trees(texts, held), place).chunk(2)
        return x, x_chosen

    def _aims(self, chosen: Tree | None, count: int) -> Tree:
        """Where targets are led: to the anchor, or, by AGE, to the very concept that the adversary chose."""
        return detach_tree(chosen) if self.config.method == "age" and chosen else repeat_row(self.anchor, count)

    def _reached(self, x: Tensor, told: Level, rows: Tensor, step: int) -> Tree | None:
        """Texts that still reach the targets, once the run is so far that they are sought."""
        due = step >= self.config.robust.after * self.config.run.steps
        return self.reaching.search(x, told, rows) if self.reaching and due else None

    def erasing(self, x: Tensor, told: Level, rows: Tensor, aims: Tree, found: Tree | None = None) -> Tensor:
        """The mean squared error between the targets' outputs on x and where they are led, beyond ``aims``.

        The outputs are those under the names, or under the texts that were ``found`` to reach the targets.
        """
        scores, texts = self.scores, select_rows(self.texts, rows)
        with torch.no_grad():
            prompts = join_trees(aims, texts)
            towards, away = scores.output(scores.old, torch.cat([x, x]), told, prompts).chunk(2)
        scores.cost.backward_full += len(x)
        output = scores.output(scores.new, x, told, found or texts)
        return functional.mse_loss(output, led_away(towards, away, self.config.negative_guidance))

    def holding(self, x: Tensor, told: Level, texts: Tree, *, model: bool, adversary: bool) -> Tensor:
        """Mean squared changes (rows,) of the chosen concepts' outputs; the flags say which players learn from them."""
        scores, through = self.scores, adversary and self.config.adversary_grad == "full"
        fixed = detach_tree(texts)
        with torch.set_grad_enabled(through):
            kept = scores.output(scores.old, x, told, texts if through else fixed)
        found = scores.output(scores.new if model else scores.still, x, told, texts if adversary else fixed)
        if torch.is_grad_enabled():
            scores.cost.backward_full += len(x) * model
            scores.cost.backward_input += len(x) * (through + (adversary and not model))
        return (found - kept).square().flatten(1).mean(1)

    @torch.no_grad()
    def search(self, noise: Tensor, place: int, told: Level, target: int, texts: Tree) -> Tensor:
        """How much the network's output for each text (n,) has changed, on one sample of the target from ``noise``."""
        with self.scores.spending("search"):
            x = self.scores.state(self.scores.start(noise[:1]), select_rows(self.texts, torch.tensor([target])), place)
            return torch.cat([self._changed(x, told, part) for part in split_tree(texts, 64)])

    def _changed(self, x: Tensor, told: Level, texts: Tree) -> Tensor:
        many = x.expand(num_rows(texts), *x.shape[1:])
        return self.holding(many, told, texts, model=True, adversary=False)

    def pilot(self, count: int = 8, repeats: int = 1) -> list[float]:
        """Chances of the least variance an evaluation: a gradient's norm over the square root of what a level costs.

        The gradients are those of erasing at the states of the model as it is.
        """
        scores, squares = self.scores, [0.0] * len(self.scores.levels.weights)
        noise, edited = generator(self.config.run.seed, "pilot"), list(scores.edited.values())
        with scores.spending("pilot"):
            for _ in range(repeats):
                rows = torch.randint(len(self.config.targets), (count,), generator=noise)
                x = scores.start(torch.randn((count, *scores.shape), generator=noise))
                for place, weight in enumerate(scores.levels.weights):
                    since = place - 1 if place else None
                    x = scores.state(x, select_rows(self.texts, rows), place, since=since)
                    loss = weight * self.erasing(x, scores.levels.grid[place], rows, repeat_row(self.anchor, count))
                    slopes = torch.autograd.grad(loss, edited, allow_unused=True)
                    squares[place] += sum(float(slope.square().sum()) for slope in slopes if slope is not None)
        prices = [2 * place + 5 for place in range(len(squares))]  # guided steps to a level, and its scores
        return with_floor([square**0.5 / price**0.5 for square, price in zip(squares, prices, strict=True)])

    # What ``fit`` asks of a method

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.scores.network, **self._players()}

    def _players(self) -> dict[str, nn.Module]:
        players = {"adversary": self.adversary, "reaching": self.reaching}
        return {name: player for name, player in players.items() if player}

    def parameter_groups(self) -> list[Group]:
        groups = [Group(list(self.scores.edited.values()), self.learning_rate())]
        if isinstance(self.adversary, Gumbel):
            groups.append(Group([self.adversary.logits], self.config.adversary_lr, maximize=True))
        return groups

    def learning_rate(self) -> float:
        """The configured one, or that by which Adam's steps add up to ``strength`` times the weights' size at most."""
        config = self.config
        if config.learning_rate is not None:
            return config.learning_rate
        most = config.strength * self.scores.size
        if config.adapter_rank:  # most = rank x far x (spread + far), where both halves move as far as they can
            spread = self.scores.spread
            most = ((spread**2 + 4 * most / config.adapter_rank) ** 0.5 - spread) / 2
        return most / config.run.steps

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups)

    def after_step(self, step: int) -> None:
        if self.adversary:
            self.adversary.after_step()
        if self.memory:
            self.memory.correct(self.scores.edited)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        edited = {f"edited.{name}": parameter.detach() for name, parameter in self.scores.edited.items()}
        values = {"base": self.scores.base, "chances": self.scores.levels.chances, "cost": asdict(self.scores.cost)}
        return {**edited, **module_state(**self._players())}, values

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["base"] != self.scores.base:
            raise InputError("the unfinished run is about another model: take that one, or choose another --out")
        for name, parameter in self.scores.edited.items():
            parameter.copy_(tensors[f"edited.{name}"])
        load_module_state(tensors, **self._players())
        self.scores.levels.chances, self.scores.cost = values["chances"], Cost(**values["cost"])

    def preview(self) -> None:
        return None

    def delta(self) -> Delta:
        """What changed so far, with what it cost and what the adversary came to prefer."""
        scores, config = self.scores, self.config
        record = DeltaRecord({scores.component: self.scores.base}, config.method, config.targets, {}, self.report())
        return scores.delta(record)

    def report(self) -> dict[str, Any]:
        """Figures of the run for its record."""
        cost, levels = self.scores.cost, self.scores.levels
        found: dict[str, Any] = {
            "network_evaluations": cost.network_evaluations,
            "evaluation_equivalents": cost.evaluation_equivalents,
            "evaluations_by_purpose": dict(cost.forward),
            "pilot_evaluations": cost.forward.get("pilot", 0),
            "expected_evaluations_a_step": self.config.run.batch_size * self._expected(),
            "weight_of_five_noisiest_levels": levels.noisiest_share(),
            "candidates": {c.target: dict(zip(c.names, c.distances, strict=True)) for c in self.candidates},
            "excluded": list(self.candidates[0].excluded) if self.candidates else [],
        }
        if self.memory:
            found["protected_directions"] = self.memory.sizes()["inputs"]
        if isinstance(self.adversary, Gumbel):
            chances = self.adversary.chances()
            found["adversary_entropy"] = torch.special.entr(chances).sum(1).tolist()
        return found

    def _expected(self) -> float:
        """Samples through the network forward that a row of a step takes on average, searches aside."""
        config, levels = self.config, self.scores.levels
        place = sum(place * chance for place, chance in enumerate(levels.chances or normal(levels.weights)))
        own = self.adversary is not None and config.candidate_state == "own"
        scores = 3 + 2 * (self.adversary is not None)
        robust, sought = config.robust, 0.0
        if self.reaching:
            sought = robust.share * (1 + robust.steps) * (1 - robust.after)
        return 2 * place * (1 + own) + scores + sought

    def export(self, folder: Path) -> None:
        write_delta(self.delta(), folder)


def led_away(towards: Tensor, away: Tensor, guidance: float) -> Tensor:
    """What a target's output is trained to be: beyond the anchor's, away from the target's own (2303.07345, eq. 6)."""
    return towards - guidance * (away - towards)
