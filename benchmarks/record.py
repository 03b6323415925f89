"""Writing a benchmark's result: protocol, rows and headlines, with the machine and the versions that made them."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from logsnr.core.artifact import write_json
from logsnr.metrics.bounds import bootstrap_interval

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
RESAMPLES = 10_000


def headline(
    name: str, value: float, goal: float, sense: Literal[">=", "<="], interval: tuple[float, float] | None = None
) -> dict[str, Any]:
    """One headline, with its interval where one was computed and whether the goal is met."""
    low, high = interval or (value, value)
    met = value >= goal if sense == ">=" else value <= goal
    return {"name": name, "value": value, "low": low, "high": high, "goal": goal, "sense": sense, "met": met}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over runs, by resampling them; runs without a figure count for nothing."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) == 1:
        return finite[0], finite[0]
    return bootstrap_interval(torch.tensor(finite), num_resamples=RESAMPLES)


def write_result(
    name: str, protocol: dict[str, Any], rows: list[dict[str, Any]], headlines: list[dict[str, Any]]
) -> None:
    """Write results/NAME.json and print the headlines."""
    protocol = {
        **protocol,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "python": platform.python_version(),
        "versions": {package: version(package) for package in ("logsnr", "torch", "diffusers", "transformers")},
    }
    write_json(RESULTS / f"{name}.json", {"protocol": protocol, "rows": rows, "headline": headlines})
    for entry in headlines:
        tell(entry)


def tell(entry: dict[str, Any]) -> None:
    """Print a headline."""
    verdict = "met" if entry["met"] else "missed"
    print(f"{entry['name']}: {entry['value']:.4f} (goal {entry['sense']} {entry['goal']}: {verdict})")


def in_page(page: str, name: str, table: Sequence[Sequence[str]]) -> str:
    """A page's text with a table, its first row the titles, between the marks of that name.

    Raises:
        ValueError: the page has no such marks.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, mark, rest = page.partition(start)
    _, close, after = rest.partition(end)
    if not (mark and close):
        raise ValueError(f"the page has no {start.strip()} and {end}")
    titles, *rows = ["| " + " | ".join(row) + " |" for row in table]
    lines = [titles, "|" + "---|" * len(table[0]), *rows]
    return before + mark + "".join(f"{line}\n" for line in lines) + close + after


def write_table(page: Path, name: str, table: Sequence[Sequence[str]]) -> None:
    """Put a table into a page of the documentation."""
    page.write_text(in_page(page.read_text(), name, table))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
