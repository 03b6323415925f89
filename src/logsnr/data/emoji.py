"""Emoji: about a thousand concepts in three open styles, 32x32 in colour, augmented by seed.

The concepts stand in ``emoji.tsv``: those of Unicode 15.1 that all three styles draw, without flags, skin tones,
symbols, letters, clock faces and what differs from a neighbour in a detail alone. Names follow Unicode CLDR, synonyms
the short names of emoji-data (MIT). ``mirror`` says whether a drawing may be flipped: none with text or a direction.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.captions import without_article
from logsnr.data.emoji_captions import EmojiCaptions
from logsnr.data.emoji_drawings import STYLES, Codepoints, draw

SIZE = 32
SPLITS = ("train", "held-out", "all")
HELD_OUT_SHARE = 0.05
SCALES = (0.75, 0.95)
WHITE = 0.3
_PLAIN = (0.5, 0.5, 0.5, 1.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Concept:
    """One thing that every style draws: its code points, place in Unicode's order, and phrases, formal name first."""

    codepoints: Codepoints
    group: str
    subgroup: str
    mirrors: bool
    phrases: tuple[str, ...]

    @property
    def name(self) -> str:
        """The formal name without its article."""
        return without_article(self.phrases[0])


@dataclass(frozen=True)
class Emoji:
    """Pairs of a concept and a style as drawings (pairs, 4, height, width), seen in ``views`` augmented views each.

    Item ``view * pairs + pair`` is a pure function of (seed, view, pair): an epoch over the pairs is a view. Without a
    seed every item is plain: centred, not flipped, on white. Drawings hold colours times coverage, then coverage.
    """

    drawings: Tensor
    pair_labels: Tensor
    pair_styles: Tensor
    mirrors: Tensor
    classes: tuple[str, ...]
    views: int = 1
    seed: int | None = None

    def __len__(self) -> int:
        return self.views * len(self.drawings)

    @property
    def labels(self) -> Tensor:
        """The concept of every item (len,)."""
        return self.pair_labels.repeat(self.views)

    @property
    def styles(self) -> Tensor:
        """The style of every item (len,)."""
        return self.pair_styles.repeat(self.views)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``image`` (n, 3, 32, 32) in [-1, 1], ``label``, ``style`` and ``index`` (n,)."""
        views, pairs = indices // len(self.drawings), indices % len(self.drawings)
        draws = torch.stack([self._draws(*item) for item in zip(views.tolist(), pairs.tolist(), strict=True)])
        image = paint(self.drawings[pairs], draws, self.mirrors[pairs])
        return {"image": image, "label": self.pair_labels[pairs], "style": self.pair_styles[pairs], "index": indices}

    def _draws(self, view: int, pair: int) -> Tensor:
        if self.seed is None:
            return torch.tensor(_PLAIN)
        return torch.rand(len(_PLAIN), generator=generator(self.seed, "view", view, pair))


@functools.cache
def list_concepts() -> tuple[Concept, ...]:
    """All concepts in Unicode's order; a concept's label is its place. Needs no drawings."""
    with (files("logsnr.data") / "emoji.tsv").open(encoding="utf-8") as lines:
        return tuple(
            Concept(
                codepoints=tuple(int(point, 16) for point in row["codepoints"].split("-")),
                group=row["group"],
                subgroup=row["subgroup"],
                mirrors=row["mirror"] == "yes",
                phrases=tuple(row["names"].split("; ")),
            )
            for row in csv.DictReader(lines, delimiter="\t")
        )


def emoji_captions() -> EmojiCaptions:
    """The captions of all concepts and styles."""
    return EmojiCaptions(tuple(concept.phrases for concept in list_concepts()), STYLES)


def held_out_pairs() -> Tensor:
    """Which (concept, style) no training sees: 5 % as booleans (concepts, styles), at most one style of a concept."""
    num = len(list_concepts())
    count = round(HELD_OUT_SHARE * num * len(STYLES))
    chosen = torch.randperm(num, generator=generator(0, "emoji", "held out"))[:count]
    pairs = torch.zeros(num, len(STYLES), dtype=torch.bool)
    pairs[chosen, torch.arange(count) % len(STYLES)] = True
    return pairs


def load_emoji(split: str = "train", *, views: int = 1, seed: int | None = None) -> Emoji:
    """The pairs of a split, ordered by concept and then style: "train" (95 %), "held-out" (5 %) or "all".

    Raises:
        InputError: unknown split, or no view.
        MissingError: the drawings of a style are not installed; the message says what to install.
        BrokenError: they are damaged.
    """
    if split not in SPLITS or views < 1:
        raise InputError(f"emoji has no split {split!r} with {views} views: use {', '.join(SPLITS)} and at least 1")
    concepts, hidden = list_concepts(), held_out_pairs()
    wanted = torch.ones_like(hidden) if split == "all" else hidden == (split == "held-out")
    pairs = wanted.nonzero()
    mirrors = torch.tensor([concept.mirrors for concept in concepts])
    return Emoji(
        drawings=_all_drawings()[wanted],
        pair_labels=pairs[:, 0],
        pair_styles=pairs[:, 1],
        mirrors=mirrors[pairs[:, 0]],
        classes=tuple(concept.name for concept in concepts),
        views=views,
        seed=seed,
    )


@functools.cache
def _all_drawings() -> Tensor:
    """Drawings (concepts, styles, 4, 64, 64) of twice the size of the images, read once a process."""
    codes = [concept.codepoints for concept in list_concepts()]
    return torch.stack([draw(style, codes, size=2 * SIZE) for style in STYLES], 1)


def paint(drawings: Tensor, draws: Tensor, mirrors: Tensor) -> Tensor:
    """Images (n, 3, 32, 32) in [-1, 1] of drawings (n, 4, 64, 64), wholly inside, from uniform draws (n, 8).

    The draws are: scale, place across, place down, flip (where ``mirrors`` (n,) allows it), white or pastel, and the
    pastel's hue, saturation and value.
    """
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draws[:, 0]
    centre = (2 * draws[:, 1:3] - 1) * (1 - scale[:, None])
    side = torch.where(mirrors & (draws[:, 3] < 0.5), -1.0, 1.0)
    turn = torch.zeros(len(draws), 2, 3)
    turn[:, 0, 0], turn[:, 1, 1] = side / scale, 1 / scale
    turn[:, 0, 2], turn[:, 1, 2] = -side * centre[:, 0] / scale, -centre[:, 1] / scale
    grid = functional.affine_grid(turn, [len(draws), 4, 2 * SIZE, 2 * SIZE], align_corners=False)
    painted = functional.avg_pool2d(functional.grid_sample(drawings / 255, grid, align_corners=False), 2)
    image = painted[:, :3] + (1 - painted[:, 3:]) * _background(draws[:, 4:])[:, :, None, None]
    return image.clamp(0, 1) * 2 - 1


def _background(draws: Tensor) -> Tensor:
    """Colours (n, 3) in [0, 1], white or pastel: any hue, saturation up to 0.3, value from 0.9 (HSV)."""
    hue, saturation, value = 6 * draws[:, 1:2], 0.3 * draws[:, 2:3], 0.9 + 0.1 * draws[:, 3:4]
    distance = (torch.tensor([5.0, 3.0, 1.0]) + hue) % 6
    pastel = value * (1 - saturation * torch.minimum(distance, 4 - distance).clamp(0, 1))
    return torch.where(draws[:, :1] < WHITE, torch.ones(3), pastel)
