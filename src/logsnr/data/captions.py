"""Captions of labelled images: a name or synonym of the class, factor words read off the pixels, and a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from logsnr.core.errors import InputError

TEMPLATES = (
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a {}",
    "{}",
    "the {}",
    "one single {}",
    "a close view of the {}",
    "a product photo of a {}",
    "a studio picture of one {}",
    "a catalogue image of the {}",
    "a grey {} on a black background",
    "a plain photo of a {} in front of black",
    "fashion item: {}",
    "a {} for sale in an online shop",
)
HELD_OUT_TEMPLATES = (
    "a studio photo of the {}",
    "a plain catalogue picture of one {}",
    "an image of a single {} on a black background",
)
BRIGHTNESS = ("dark", "bright")
SIZE = ("small", "large")


class Wording(Protocol):
    """How a data set words its items: by class and, where it has ``styles``, by style."""

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each class, formal name first."""
        ...

    @property
    def styles(self) -> tuple[str, ...]:
        """The names of the styles; empty where images have none."""
        ...

    def prompt(self, label: int, template: int = 0, *, held_out: bool = False, style: int | None = None) -> str:
        """The caption of a class by its formal name; ``held_out`` takes the templates that training never sees."""
        ...

    def all_sentences(self) -> list[str]:
        """What a tokenizer has to know."""
        ...

    def caption(self, label: int, factors: Sequence[int], draws: Sequence[float]) -> str:
        """One training caption from four uniform draws and the item's own factors, whose meaning is the data set's."""
        ...


def every_prompt(captions: Wording, label: int) -> list[str]:
    """A class by its formal name in every trained template and style, and by each of its other names alone."""
    styles: list[int | None] = [None, *range(len(captions.styles))]
    worded = [captions.prompt(label, template, style=style) for style in styles for template in range(_TEMPLATES)]
    return list(dict.fromkeys([*worded, *captions.names[label][1:]]))


_TEMPLATES = 16
"""Templates that are asked for; they come again where there are fewer."""


@dataclass(frozen=True)
class Captions:
    """What captions of a data set can say: the names of each class, formal name first, and the templates."""

    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...] = TEMPLATES
    held_out: tuple[str, ...] = HELD_OUT_TEMPLATES
    empty: float = 0.1
    with_factors: float = 0.4
    styles: tuple[str, ...] = ()

    def prompt(self, label: int, template: int = 0, *, held_out: bool = False, style: int | None = None) -> str:
        """The caption of a class by its formal name, without factor words.

        Raises:
            InputError: a style, of which these captions have none.
        """
        if style is not None:
            raise InputError(f"these captions have no style {style}: leave it out")
        templates = self.held_out if held_out else self.templates
        return _agree(templates[template % len(templates)].format(self.names[label][0]))

    def all_sentences(self) -> list[str]:
        """Every template with every name, plus the factor words: what a tokenizer has to know."""
        names = [name for synonyms in self.names for name in synonyms]
        return [t.format(name) for t in self.templates + self.held_out for name in names] + [*BRIGHTNESS, *SIZE]

    def caption(self, label: int, factors: Sequence[int], draws: Sequence[float]) -> str:
        """One training caption from four uniform draws: empty or not, the name, the template, factor words or not.

        ``factors`` are -1, 0 or 1 for brightness and size: low, ordinary or high within the class.
        """
        if draws[0] < self.empty:
            return ""
        synonyms = self.names[label]
        words = [synonyms[int(draws[1] * len(synonyms))]]
        if draws[3] < self.with_factors:
            brightness, size = factors
            words = [BRIGHTNESS[brightness > 0]] * (brightness != 0) + words
            words = [SIZE[size > 0]] * (size != 0) + words
        sentence = self.templates[int(draws[2] * len(self.templates))].format(" ".join(words))
        return _agree(sentence)


def pixel_factors(images: Tensor, labels: Tensor) -> Tensor:
    """Brightness and size (n, 2) of byte images (n, 1, size, size): -1 in the lowest third of a class, 1 in the top.

    Size is the share of pixels that are not black; brightness is the mean of those pixels.
    """
    inside = images.flatten(1) > 16
    size = inside.float().mean(1)
    brightness = (images.flatten(1).float() * inside).sum(1) / inside.sum(1).clamp(min=1)
    factors = torch.zeros(len(labels), 2, dtype=torch.long)
    for label in labels.unique():
        members = labels == label
        for column, values in enumerate((brightness, size)):
            low, high = values[members].quantile(torch.tensor([1 / 3, 2 / 3]))
            factors[members, column] = (values[members] > high).long() - (values[members] < low).long()
    return factors


def _agree(sentence: str) -> str:
    """The article "an" before a vowel: a name or factor word may start with one."""
    words = sentence.split(" ")
    for place, word in enumerate(words[:-1]):
        if word in ("a", "an"):
            words[place] = "an" if words[place + 1][0] in "aeiou" else "a"
    return " ".join(words)


def without_article(phrase: str) -> str:
    """The name in a phrase: "fox" of "a fox", "grapes" of "grapes"."""
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an", "the") else phrase
