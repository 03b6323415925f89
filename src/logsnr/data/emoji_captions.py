"""Captions of emoji: a phrase for the concept, a template, and the style or no word of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from logsnr.data.captions import without_article

PLAIN = (
    "{thing}",
    "{name}",
    "an emoji of {thing}",
    "an icon of {thing}",
    "a picture of {thing}",
    "a small drawing of {thing}",
    "{name} emoji",
)
STYLED = (
    "{thing} in {style} style",
    "{style} style emoji of {thing}",
    "a {style} emoji of {thing}",
    "an emoji of {thing} in {style} style",
    "a {style} style picture of {thing}",
    "a drawing of {thing} in the {style} style",
    "{style} {name}",
    "{name}, {style}",
    "{name} emoji, {style} style",
    "a small {style} icon of {thing}",
)
HELD_OUT_PLAIN = ("a drawing of {thing}", "{name} icon", "a small picture of {thing}")
HELD_OUT_STYLED = (
    "a picture of {thing} in {style} style",
    "{style} style icon of {thing}",
    "a small emoji of {thing} in the {style} style",
    "{name} drawing, {style} style",
)


@dataclass(frozen=True)
class EmojiCaptions:
    """What captions of emoji can say: the phrases of each concept, formal name first ("a fox"), and the styles.

    A phrase brings its own article, since plural and uncountable names ("grapes", "garlic") have none.
    """

    names: tuple[tuple[str, ...], ...]
    styles: tuple[str, ...]
    empty: float = 0.1
    with_style: float = 0.7

    def prompt(self, label: int, template: int = 0, *, held_out: bool = False, style: int | None = None) -> str:
        """The caption of a concept by its formal name; without a style it does not say one."""
        if style is None:
            templates = HELD_OUT_PLAIN if held_out else PLAIN
        else:
            templates = HELD_OUT_STYLED if held_out else STYLED
        return self._fill(templates[template % len(templates)], self.names[label][0], style)

    def all_sentences(self) -> list[str]:
        """Every phrase, and every template with every style: what a tokenizer has to know."""
        phrases = [phrase for phrases in self.names for phrase in phrases]
        templates = PLAIN + STYLED + HELD_OUT_PLAIN + HELD_OUT_STYLED
        filled = [self._fill(t, phrases[0], style) for t in templates for style in range(len(self.styles))]
        return [*dict.fromkeys(filled), *phrases]

    def caption(self, label: int, factors: Sequence[int], draws: Sequence[float]) -> str:
        """One training caption from four uniform draws: empty or not, the phrase, the template, with style or not.

        ``factors`` holds the index of the image's style.
        """
        if draws[0] < self.empty:
            return ""
        phrases = self.names[label]
        templates = STYLED if draws[3] < self.with_style else PLAIN
        template = templates[int(draws[2] * len(templates))]
        return self._fill(template, phrases[int(draws[1] * len(phrases))], factors[0])

    def _fill(self, template: str, phrase: str, style: int | None) -> str:
        return template.format(
            thing=phrase, name=without_article(phrase), style="" if style is None else self.styles[style]
        )
