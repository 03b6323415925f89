"""Parts of the erasure benchmark as runs: what is kept at matched erasure, and paired differences of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from erasure import CLASSES
from numpy.typing import NDArray
from record import RESULTS

RESAMPLES = 2000
KNOWN = 0.8
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One arm on one task: hits of every test (tests, classes, images) after the edit, and before (classes, images)."""

    arm: str
    split: str
    regime: str
    seed: int
    erased: tuple[int, ...]
    after: Array
    before: Array
    row: dict[str, Any]


def read() -> list[Run]:
    """Every part that is there."""
    runs = []
    for path in sorted((RESULTS / "erasure").glob("fashion-*.json")):
        row = json.loads(path.read_text())
        after = np.stack([_hits(test["hits"]) for test in row["tests"]])
        erased = tuple(CLASSES.index(target) for target in row["targets"])
        before = _hits(row["tests"][0]["hits_before"])
        runs.append(Run(row["arm"], ",".join(row["targets"]), row["regime"], row["seed"], erased, after, before, row))
    return runs


def _hits(bits: str) -> Array:
    """(classes, images) of zeros and ones; classes take turns in the images."""
    return np.array([int(bit) for bit in bits], dtype=float).reshape(-1, len(CLASSES)).T


def relative(after: Array, before: Array, erased: Sequence[int]) -> tuple[Array, Array, Array]:
    """Relative ESR, relative PSR and the worst kept class, each (..., tests), from shares (..., tests, classes)."""
    known = before >= KNOWN
    share = np.where(known, after / np.maximum(before, 1e-9), np.nan)
    gone = np.zeros(len(CLASSES), dtype=bool)
    gone[list(erased)] = True
    return 1 - np.nanmean(share[..., gone], -1), np.nanmean(share[..., ~gone], -1), np.nanmin(share[..., ~gone], -1)


def at_level(erased: Array, kept: Array, level: float) -> float:
    """What is kept where ``erased`` (tests,) first reaches the level, between two tests; nan where none does."""
    above = np.flatnonzero(erased >= level)
    if not len(above):
        return float("nan")
    place = int(above[0])
    if place == 0:
        return float(kept[0])
    share = (level - erased[place - 1]) / (erased[place] - erased[place - 1])
    return float(kept[place - 1] + share * (kept[place] - kept[place - 1]))


def kept_at(run: Run, level: float, images: NDArray[np.int64] | None = None, *, worst: bool = False) -> float:
    """Relative PSR of a run at matched erasure; ``images`` (classes, n) are those that a resample drew."""
    after, before = run.after, run.before
    if images is not None:
        after = np.take_along_axis(after, images[None], 2)
        before = np.take_along_axis(before, images, 1)
    figures = relative(after.mean(2), before.mean(1), run.erased)
    return at_level(figures[0], figures[2 if worst else 1], level)


def resampled(
    runs: Sequence[tuple[Run, Run]], measure: Callable[[Run, NDArray[np.int64] | None], float]
) -> tuple[float, Array]:
    """The mean paired difference over runs, and its draws, by resampling runs, and images within classes."""
    draws = np.random.default_rng(0)
    count = runs[0][0].before.shape[1]

    def mean(chosen: Sequence[tuple[Run, Run]], *, resample: bool) -> float:
        values = []
        for first, second in chosen:
            images = draws.integers(count, size=(len(CLASSES), count)) if resample else None
            values.append(measure(first, images) - measure(second, images))
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

    found = [
        mean([runs[place] for place in draws.integers(len(runs), size=len(runs))], resample=True)
        for _ in range(RESAMPLES)
    ]
    return mean(runs, resample=False), np.array(found)


def difference(
    runs: Sequence[tuple[Run, Run]], measure: Callable[[Run, NDArray[np.int64] | None], float]
) -> tuple[float, float, float]:
    """The mean paired difference with its 95 % interval."""
    value, draws = resampled(runs, measure)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return value, float(low), float(high)


def pairs(runs: Sequence[Run], first: str, second: str, regime: str) -> list[tuple[Run, Run]]:
    """The runs of two arms on the same tasks."""
    chosen = {(run.arm, run.split, run.seed): run for run in runs if run.regime == regime}
    tasks = sorted({(run.split, run.seed) for run in runs})
    found = [(chosen.get((first, *task)), chosen.get((second, *task))) for task in tasks]
    return [(a, b) for a, b in found if a and b]


def figure_at(run: Run, name: str, level: float) -> float:
    """A figure of the tests at matched erasure."""
    erased = relative(run.after.mean(2), run.before.mean(1), run.erased)[0]
    return at_level(erased, np.array([test[name] for test in run.row["tests"]], dtype=float), level)
