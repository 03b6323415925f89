"""How a training run goes; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from logsnr.core.errors import InputError


@dataclass(frozen=True)
class FitConfig:
    """Everything about a run that is not its objective.

    ``batch_size`` counts the rows of one optimiser step, over all processes and accumulated micro-batches.
    """

    steps: int = 1000
    batch_size: int = 64
    seed: int = 0
    accumulation: int = 1
    warmup: int = 100
    decay: Literal["none", "cosine"] = "none"
    clip: float | None = 1.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    cpu: bool = False
    out: Path | None = None
    checkpoint_every: int = 500
    keep: int = 2
    preview_every: int = 0
    log_every: int = 10
    track: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.warmup < 0 or self.preview_every < 0:
            raise InputError("warmup and preview_every cannot be negative: use 0 to switch them off")
        if self.batch_size % self.accumulation:
            raise InputError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulation} equal parts: "
                "choose an accumulation that divides it"
            )
