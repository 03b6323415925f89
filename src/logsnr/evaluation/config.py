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


@dataclass(frozen=True)
class MatchConfig:
    """How a table is moved towards the features of real images."""

    num_fit: int = 1000
    """Start noises on which the response of the features is measured: several times as many as there are features."""
    num_selection: int = 1000
    """Further ones, which judge every candidate."""
    num_real: int = 10_000
    """Real images whose features are the target."""
    rounds: int = 2
    """Rounds of measuring all responses, each about 3 num_fit steps^2 evaluations."""
    penalties: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Pulls towards the table as it was, of which the held-out noises choose."""
    batch_size: int = 250
    """Start noises that are followed together."""
    seed: int = 4_100_000
    """Seed of the first start noise; the others count up from it, and should not be seeds that are served."""

    def __post_init__(self) -> None:
        if min(self.num_fit, self.num_selection, self.num_real) < 20 or self.rounds < 1 or self.batch_size < 1:
            raise InputError(
                "matching needs at least 20 noises to fit, 20 to select, 20 real images, 1 round, 1 noise a batch"
            )
        if not self.penalties or min(self.penalties) <= 0:
            raise InputError("penalties must be positive, and at least one")
