"""What a part of the demo gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from logsnr.evaluation.report import Section


@dataclass(frozen=True)
class Part:
    """One part: its section of the report, its figures, its seconds, and whether they are as they should be."""

    name: str
    section: Section
    values: dict[str, Any]
    passed: bool = True
    seconds: float = field(default=0.0)
