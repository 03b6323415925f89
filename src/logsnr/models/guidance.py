"""Safe latent diffusion (2211.05105): guidance that leads away from a concept where an image comes near it.

No weight changes. Beside the prompt and the empty prompt the network reads the concept, and what separates the concept
from the empty prompt is taken off the guidance wherever the prompt's noise is not clear of the concept's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from logsnr.core.types import Level


@dataclass(frozen=True)
class SafeConstants:
    """How hard the concept is avoided: the paper's warm-up of so many of 50 steps is a share of the time here."""

    warmup: float
    scale: float
    threshold: float
    momentum: float
    decay: float


SAFE = {
    "weak": SafeConstants(15 / 50, 200, 0.0, 0.0, 0.0),
    "medium": SafeConstants(10 / 50, 1000, 0.01, 0.3, 0.4),
    "strong": SafeConstants(7 / 50, 2000, 0.025, 0.5, 0.7),
    "max": SafeConstants(0.0, 5000, 1.0, 0.5, 0.7),
}
"""The paper's four configurations."""


class SafeGuidance:
    """The guidance of one run, step after step: its momentum is that of the steps before."""

    def __init__(self, constants: SafeConstants):
        self.constants = constants
        self.start()

    def start(self) -> None:
        """Begin a run."""
        self.velocity: Tensor | None = None

    def avoid(self, without: Tensor, given: Tensor, avoided: Tensor, level: Level) -> Tensor:
        """What is taken off the guidance (eqs. 4 to 8), shaped like the sample.

        It is computed from the noise that the network sees without a prompt, with it, and with what is avoided.
        """
        constants, near = self.constants, given - avoided
        share = (constants.scale * near).abs().clamp(max=1).masked_fill(near >= constants.threshold, 0)
        before = torch.zeros_like(near) if self.velocity is None else self.velocity
        pull = share * (avoided - without) + constants.momentum * before
        self.velocity = pull.lerp(before, constants.decay)
        return pull if level.t <= 1 - constants.warmup else torch.zeros_like(pull)
