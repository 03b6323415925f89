"""Protocols as configurations; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class QualityConfig:
    """Sample quality against real images: how many images, from which seeds, how compared."""

    num_images: int = 2000
    """Images to make, the same number of each class."""
    first_seed: int = 0
    """Seed of the first image; the others follow."""
    batch_size: int = 100
    """Images that are made together."""
    held_out: bool = True
    """Word the prompts by templates that training never saw."""
    neighbours: int = 3
    """The k of precision and recall."""
    references: int = 10_000
    """Real training images that precision and recall are taken against."""

    def __post_init__(self) -> None:
        if self.num_images < 20:
            raise InputError(f"num_images is {self.num_images}: a quality protocol needs at least 20")
        if self.first_seed < 0 or self.batch_size < 1 or self.neighbours < 1:
            raise InputError("first_seed, batch_size and neighbours must be 0, 1 and 1 or more")
