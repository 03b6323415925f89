"""What every verb shares: JSON on stdout and nothing else there, progress on stderr, one line for an error."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from logsnr.core.errors import InputError

MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
"""False in the other processes of a launch, which print nothing."""

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Console:
    """Flags of every verb."""

    json: Flag = False
    """Print one JSON object on stdout and nothing else there."""
    quiet: Flag = False
    """No progress and no logs on stderr."""

    def result(self, values: dict[str, Any], lines: list[str]) -> None:
        """Print the JSON object, or the lines for a person."""
        if not MAIN_PROCESS:
            return
        print(json.dumps(_strict(values)) if self.json else "\n".join(lines))

    def follow(self, steps: Generator[Any, None, Any]) -> Any:
        """What a training returns, run behind a bar; None if a signal stopped it, its state saved."""
        from tqdm.auto import tqdm

        bar: tqdm | None = None
        with stop_on_signals() as stop, ExitStack() as closed:
            while True:
                try:
                    found = next(steps)
                except StopIteration as ended:
                    return ended.value
                if bar is None:
                    bar = closed.enter_context(tqdm(total=found.steps, unit=" steps", disable=self.quiet))
                bar.update(found.step - bar.n)
                if stop:
                    steps.close()
                    self.say(f"stopped at step {found.step}, state saved: add --resume to go on")
                    return None

    def say(self, line: str) -> None:
        """A line of progress for a person, on stderr."""
        if MAIN_PROCESS and not self.quiet:
            print(line, file=sys.stderr, flush=True)


def _strict(value: Any) -> Any:
    """The same with the floats that JSON does not have as "inf", "-inf" and "nan"."""
    if isinstance(value, dict):
        return {name: _strict(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(folder: Path) -> None:
    """Refuse, before any work, an output folder that cannot be made or written.

    Raises:
        InputError: it is a file, lies below one, or is closed to this user.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(
            f"{folder} cannot be written: {place} is no folder that this user can write; choose another --out"
        )


def peak_memory_mb() -> int:
    """The most memory that this process has held so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (1024 if sys.platform != "darwin" else 1024**2))


class Stop:
    """True once an interrupt or a request to end came, so that a loop can stop between two steps."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked

    def ask(self, *_: Any) -> None:
        self.asked = True


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a flag; a second SIGINT interrupts at once."""
    stop = Stop()

    def first(*_: Any) -> None:
        stop.ask()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, first) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
