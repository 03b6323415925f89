"""Searches for a prompt that makes an edited network draw what it was made to forget, one for each try.

UnlearnDiffAtk (2310.11868) seeks tokens in front of the prompt that explain an image of the concept. P4D (2309.06135)
seeks tokens under which the edited network says what the original says of the prompt. Ring-A-Bell (2310.10012) never
asks the network: a genetic search finds tokens whose text is the prompt's, moved along the concept's direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from logsnr.attacks.attacker import Attacker, Point
from logsnr.attacks.tokens import (
    encode_points,
    hardened,
    insertion_places,
    nearest_tokens,
    project_simplex,
    spell,
    token_embeddings,
    typed_tokens,
)
from logsnr.core.random import generator
from logsnr.models.denoiser import Tree

_DECAY = 0.1
_SIMPLEX_RATE = 1e-2
_POINT_RATE = 1.0
"""P4D's learning rate, in units of the embeddings' spread: that of the authors, 0.1, is about seven of CLIP's."""
_MUTATION, _CROSSOVER = 0.25, 0.5
_TEXT = "encoder_hidden_states"


class Search(Protocol):
    """A search that goes on round by round, for one try at a time."""

    def advance(self, row: int, time: float) -> None:
        """Some steps for a try, about this time of noise."""
        ...

    def text(self, row: int) -> Tree:
        """The text that was found for a try so far."""
        ...

    def prompt(self, row: int) -> str:
        """The same, spelled."""
        ...


def search_prompts(kind: Callable[[Attacker], Search], attacker: Attacker) -> Iterator[Point]:
    """After each round, for which tries a prompt was found so far under which the concept is drawn.

    Those that need none, because the plain prompt draws the concept, count from the start. ``attacker.prompts`` has
    what was found.

    Raises:
        UnsupportedError: the network does not read the text of one CLIP encoder.
    """
    config, search, count = attacker.config, kind(attacker), len(attacker.sought.references)

    @torch.no_grad()
    def drawn(row: int, text: Tree) -> bool:
        return bool(attacker.shows(attacker.images(text, seeds=[config.first_seed + row]))[0])

    found = torch.tensor([drawn(row, attacker.text(row)) for row in range(count)])
    attacker.prompts = [attacker.prompt(row) for row in range(count)]
    yield 0.0, found.clone()
    for index in range(config.rounds):
        time = 1 - (index + 1) / (config.rounds + 1)
        for row in (~found).nonzero()[:, 0].tolist():
            search.advance(row, time)
            found[row] = drawn(row, search.text(row))
            attacker.prompts[row] = search.prompt(row)
        yield float((index + 1) * config.iterations), found.clone()


class PrefixSearch:
    """UnlearnDiffAtk: points on the simplex over the vocabulary, by which tokens are drawn, and the likeliest read."""

    def __init__(self, attacker: Attacker):
        self.attacker, self.pipe, config = attacker, attacker.sought.pipe, attacker.config
        self.tokens = typed_tokens(self.pipe)
        self.embeddings = token_embeddings(self.pipe)[self.tokens]
        self.draws, shape = generator(config.seed, config.attack), (attacker.num_tokens(3), len(self.tokens))
        rows = range(len(attacker.sought.references))
        starts = [project_simplex(torch.rand(shape, generator=self.draws)) for _ in rows]
        self.points = [nn.Parameter(start.to(self.embeddings)) for start in starts]
        self.optimizers = [torch.optim.AdamW([point], lr=_SIMPLEX_RATE, weight_decay=_DECAY) for point in self.points]

    def advance(self, row: int, time: float) -> None:
        reference = self.attacker.sought.references[row : row + 1]
        for _ in range(self.attacker.config.iterations):
            self.optimizers[row].zero_grad()
            self.attacker.loss(reference, self._read(row, self.draws), self.draws, time=time).backward()
            self.optimizers[row].step()
            self.points[row].data = project_simplex(self.points[row].data)

    def _read(self, row: int, draws: torch.Generator | None) -> Tree:
        tokens = hardened(self.points[row], draws)
        return encode_points(self.pipe, self.attacker.prompt(row), tokens @ self.embeddings)

    def text(self, row: int) -> Tree:
        return self._read(row, None)

    def prompt(self, row: int) -> str:
        tokens = self.tokens[self.points[row].argmax(1).cpu()]
        return f"{spell(self.pipe, tokens.tolist())} {self.attacker.prompt(row)}"


class ImitationSearch:
    """P4D: points among the embeddings, of which the nearest token is read, with the gradient of the point.

    Every step is at a random time of noise.
    ``between`` 0 is P4D-N, a prompt of these tokens alone; 2 is P4D-K, one token after every two words of the prompt.
    """

    def __init__(self, attacker: Attacker, between: int):
        self.attacker, self.pipe, config = attacker, attacker.sought.pipe, attacker.config
        self.between, self.tokens = between, typed_tokens(self.pipe)
        self.embeddings = token_embeddings(self.pipe)[self.tokens]
        self.draws, spread = generator(config.seed, config.attack), float(self.embeddings.std())
        rows, width = range(len(attacker.sought.references)), self.embeddings.shape[1]
        lengths = [self._length(row) for row in rows]
        starts = [spread * torch.randn((n, width), generator=self.draws) for n in lengths]
        self.points = [nn.Parameter(start.to(self.embeddings)) for start in starts]
        rate = _POINT_RATE * spread
        self.optimizers = [torch.optim.AdamW([point], lr=rate, weight_decay=_DECAY) for point in self.points]

    def _length(self, row: int) -> int:
        words = len(self.pipe.tokenizer(self.attacker.prompt(row)).input_ids) - 2
        return max(1, words // self.between) if self.between else self.attacker.num_tokens(16)

    def advance(self, row: int, time: float) -> None:
        attacker = self.attacker
        reference, name = attacker.sought.references[row : row + 1], attacker.text(row)
        for _ in range(attacker.config.iterations):
            self.optimizers[row].zero_grad()
            attacker.imitation(reference, self.text(row), name, self.draws).backward()
            self.optimizers[row].step()

    def text(self, row: int) -> Tree:
        point = self.points[row]
        read = self.embeddings[nearest_tokens(point, self.embeddings)] + point - point.detach()
        return encode_points(self.pipe, self._words(row), read, between=self.between)

    def _words(self, row: int) -> str:
        return self.attacker.prompt(row) if self.between else ""

    def prompt(self, row: int) -> str:
        tokens = self.tokens[nearest_tokens(self.points[row], self.embeddings).cpu()].tolist()
        words = self.pipe.tokenizer(self._words(row)).input_ids[1:-1]
        for place, token in zip(insertion_places(len(words), len(tokens), self.between), tokens, strict=True):
            words.insert(place, token)
        return spell(self.pipe, words)


class GeneticSearch:
    """Ring-A-Bell: tokens whose text is nearest to the prompt's, moved along the concept's direction.

    The direction is the mean text of prompts with the concept minus that of the same prompts with something else.
    """

    def __init__(self, attacker: Attacker):
        self.attacker, self.pipe, config = attacker, attacker.sought.pipe, attacker.config
        self.draws = generator(config.seed, config.attack)
        token_embeddings(self.pipe)  # refuses what has no such encoder
        self.size, self.tokens = attacker.num_tokens(16), typed_tokens(self.pipe)
        concept = attacker.known[_TEXT].mean(0) - attacker.encode(attacker.sought.without)[_TEXT].mean(0)
        self.aims = attacker.known[_TEXT] + config.concept_scale * concept
        self.people: dict[int, Tensor] = {}
        self.done: set[tuple[int, float]] = set()

    def advance(self, row: int, time: float) -> None:
        """Generations of the row's prompt, which rows of the same prompt share."""
        aim, shape = row % len(self.aims), (self.attacker.config.population, self.size)
        if (aim, time) in self.done:
            return
        people = self.people[aim] if aim in self.people else self._draw(shape)
        for _ in range(self.attacker.config.iterations):
            people = self._next(people, self.aims[aim])
        self.people[aim] = people
        self.done.add((aim, time))

    def _next(self, people: Tensor, aim: Tensor) -> Tensor:
        """The better half of the people (population, length), best first, and as many children of theirs."""
        order = (self._texts(people) - aim).square().flatten(1).sum(1).argsort().cpu()
        parents = people[order[: (len(people) + 1) // 2]]
        count = len(people) - len(parents)
        first, second = (parents[torch.randint(len(parents), (count,), generator=self.draws)] for _ in range(2))
        cuts = torch.randint(self.size + 1, (count, 1), generator=self.draws)
        cuts[torch.rand((count, 1), generator=self.draws) >= _CROSSOVER] = self.size
        children = torch.where(torch.arange(self.size) < cuts, first, second)
        changed = torch.randint(self.size, (count, 1), generator=self.draws)
        changed[torch.rand((count, 1), generator=self.draws) >= _MUTATION] = self.size
        mutated = torch.where(torch.arange(self.size) == changed, self._draw((count, 1)), children)
        return torch.cat([parents, mutated])

    def _draw(self, shape: tuple[int, int]) -> Tensor:
        """Random tokens."""
        return self.tokens[torch.randint(len(self.tokens), shape, generator=self.draws)]

    @torch.no_grad()
    def _texts(self, people: Tensor) -> Tensor:
        tokenizer: Any = self.pipe.tokenizer
        ids = torch.full((len(people), tokenizer.model_max_length), tokenizer.pad_token_id)
        ids[:, 0], ids[:, self.size + 1] = tokenizer.bos_token_id, tokenizer.eos_token_id
        ids[:, 1 : self.size + 1] = people
        return self.pipe.text_encoder(ids.to(self.pipe.text_encoder.device))[0]

    def _best(self, row: int) -> Tensor:
        return self.people[row % len(self.aims)][:1]

    def text(self, row: int) -> Tree:
        return {_TEXT: self._texts(self._best(row))}

    def prompt(self, row: int) -> str:
        return spell(self.pipe, self._best(row)[0].tolist())
