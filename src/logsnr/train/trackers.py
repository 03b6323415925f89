"""The JSONL log that every run keeps, and accelerate's trackers by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from logsnr.core.artifact import write_file
from logsnr.core.errors import BrokenError


class StepLog:
    """One JSON object a line, in order of steps; a resume drops the lines after its checkpoint."""

    def __init__(self, path: Path, *, resume_at: int = 0):
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= resume_at] if resume_at else []
        write_file(path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def write(self, entry: dict[str, Any]) -> None:
        """Append one line; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise BrokenError(f"{path} is damaged in line {number}: {error}; repair or remove it") from error
    return entries


def last_seconds(path: Path) -> float:
    """Seconds of training that a log accounts for, over all its legs."""
    entries = read_log(path)
    return float(entries[-1]["seconds"]) if entries else 0.0
