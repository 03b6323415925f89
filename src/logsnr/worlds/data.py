"""The data sets that worlds are made of: how each is worded, trained on, measured against, and shown on a sheet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from torch import Tensor

from logsnr.data.captions import Captions, Wording, pixel_factors
from logsnr.data.emoji import emoji_captions, held_out_pairs, list_concepts, load_emoji
from logsnr.data.emoji_captions import EmojiCaptions
from logsnr.data.emoji_drawings import describe_sources
from logsnr.data.fashion import NAMES, load_fashion
from logsnr.data.labelled import LabelledData, Pairs
from logsnr.evaluation.pairs import ask_pairs
from logsnr.evaluation.quality import class_prompts


@dataclass(frozen=True)
class WorldData:
    """What a world is trained on.

    The denoiser learns ``train`` with its captions; judges and autoencoder learn ``real``, which may show more. A call
    of ``factors`` gives what captions may say of each item of ``train`` beside its class, (len, k).
    """

    train: LabelledData
    factors: Callable[[], Tensor]
    captions: Wording
    real: LabelledData
    sheet: list[str]


@dataclass(frozen=True)
class Sheet:
    """The prompts of a contact sheet, in rows of eight, and what a reader has to know of its rows and columns."""

    prompts: list[str]
    legend: str


class Source(Protocol):
    """A data set of worlds. Its images are only there where they are installed; all else always is."""

    def captions(self) -> Wording:
        """How its images are worded."""
        ...

    def pairs(self) -> Pairs | None:
        """The pairs of concept and style that the denoiser learns or never sees; None where there are no styles."""
        ...

    def ask(self, num_images: int, *, held_out: bool) -> tuple[list[str], Tensor]:
        """Prompts over all that the denoiser learns, worded by templates that it sees or not, and the class of each."""
        ...

    def sheet(self) -> Sheet:
        """What it can show, on one sheet."""
        ...

    def describe(self) -> str:
        """Its name and versions, for protocols.

        Raises:
            MissingError: its images are not installed.
        """
        ...

    def training(self) -> WorldData:
        """Its training images.

        Raises:
            MissingError: they are not installed.
            BrokenError: they are damaged.
        """
        ...

    def measuring(self) -> tuple[LabelledData, LabelledData]:
        """The training images that figures are taken against, and real images that no training saw.

        Raises:
            MissingError: they are not installed.
            BrokenError: they are damaged.
        """
        ...


class Fashion:
    """Fashion-MNIST: every image is seen as it is."""

    def captions(self) -> Captions:
        return Captions(NAMES)

    def pairs(self) -> None:
        return None

    def ask(self, num_images: int, *, held_out: bool) -> tuple[list[str], Tensor]:
        return class_prompts(partial(self.captions().prompt, held_out=held_out), len(NAMES), num_images)

    def sheet(self) -> Sheet:
        captions = self.captions()
        prompts = [captions.prompt(label) for label in range(len(NAMES)) for _ in range(8)]
        return Sheet(prompts, f"By row: {', '.join(names[0] for names in NAMES)}. Seeds 0 to 7 across.")

    def describe(self) -> str:
        return "Fashion-MNIST"

    def training(self) -> WorldData:
        train = load_fashion("train")
        return WorldData(
            train, lambda: pixel_factors(train.images, train.labels), self.captions(), train, self.sheet().prompts
        )

    def measuring(self) -> tuple[LabelledData, LabelledData]:
        return load_fashion("train"), load_fashion("test")


@dataclass(frozen=True)
class EmojiPairs:
    """Emoji in augmented views, of other seeds for the denoiser, for judges and autoencoder, and for measuring.

    The denoiser learns the trained pairs in ``views`` views each; judges and autoencoder learn all, in so many that
    hardly one is seen twice.
    """

    views: int = 40
    real_views: int = 1000
    measured_views: int = 10
    test_views: int = 2

    def captions(self) -> EmojiCaptions:
        return emoji_captions()

    def pairs(self) -> Pairs:
        hidden = held_out_pairs()
        return Pairs((~hidden).nonzero(), hidden.nonzero(), tuple(concept.group for concept in list_concepts()))

    def ask(self, num_images: int, *, held_out: bool) -> tuple[list[str], Tensor]:
        asked = ask_pairs(partial(self.captions().prompt, held_out=held_out), self.pairs().trained, num_images)
        return asked.prompts, asked.labels

    def sheet(self) -> Sheet:
        captions, labels = self.captions(), {concept.name: label for label, concept in enumerate(list_concepts())}
        rows = [(names, style) for names in _SHOWN for style in range(len(captions.styles))]
        prompts = [captions.prompt(labels[name], style=style) for names, style in rows for name in names]
        across = ", then ".join(", ".join(names) for names in _SHOWN)
        return Sheet(prompts, f"Across: {across}. By row: {', '.join(captions.styles)}.")

    def describe(self) -> str:
        return f"emoji, {', '.join(describe_sources().values())}"

    def training(self) -> WorldData:
        train = load_emoji("train", views=self.views, seed=1)
        real = load_emoji("all", views=self.real_views, seed=2)
        return WorldData(train, lambda: train.styles[:, None], self.captions(), real, self.sheet().prompts)

    def measuring(self) -> tuple[LabelledData, LabelledData]:
        train = load_emoji("train", views=self.measured_views, seed=1)
        return train, load_emoji("all", views=self.test_views, seed=3)


_SHOWN = (
    ("grinning face", "ghost", "robot", "thumbs up", "astronaut", "fox", "cactus", "sunflower"),
    ("watermelon", "hamburger", "rocket", "house", "sailboat", "soccer ball", "guitar", "crown"),
)
SOURCES: dict[str, Source] = {"fashion": Fashion(), "emoji": EmojiPairs()}
