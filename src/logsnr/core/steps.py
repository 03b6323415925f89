"""Long work as a generator of its steps, whose result is what it returns."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import TypeVar

Step = TypeVar("Step")
Made = TypeVar("Made")


def finish(steps: Generator[Step, None, Made], progress: Callable[[Step], None] | None = None) -> Made:
    """What a run returns after its last step; ``progress`` is called after each, and what it raises closes the run."""
    with closing(steps):
        while True:
            try:
                found = next(steps)
            except StopIteration as ended:
                return ended.value
            if progress:
                progress(found)
