"""Parts of the erasure benchmark as runs: what is kept at matched erasure, and paired differences of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import RESAMPLES, RESULTS

KNOWN = 0.8
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One arm on one task: hits of every test (tests, classes, images) after the edit, and before (classes, images)."""

    world: str
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
    for path in sorted((RESULTS / "erasure").glob("table-*.json")):
        row = json.loads(path.read_text())
        classes = row["classes"]
        after = np.stack([_hits(test["hits"], len(classes)) for test in row["tests"]])
        before = _hits(row["tests"][0]["hits_before"], len(classes))
        erased, split = tuple(classes.index(target) for target in row["targets"]), ",".join(row["targets"])
        names = (row["world"], row["arm"], split, row["regime"], row["seed"])
        runs.append(Run(*names, erased, after, before, row))
    return runs


def _hits(bits: str, num_classes: int) -> Array:
    """(classes, images) of zeros and ones; classes take turns in the images."""
    return np.array([int(bit) for bit in bits], dtype=float).reshape(-1, num_classes).T


@dataclass(frozen=True)
class Drawn:
    """One resample: for every class which of its images, and which of the erased and of the kept classes."""

    images: NDArray[np.int64]
    erased: NDArray[np.int64]
    kept: NDArray[np.int64]


def relative(
    after: Array, before: Array, erased: Sequence[int], drawn: Drawn | None = None
) -> tuple[Array, Array, Array]:
    """Relative ESR, relative PSR and the worst kept class, each (tests,), from hits (tests, classes, images).

    A class that the model drew too seldom before has no part. The worst kept class is one of all, drawn or not.
    """
    if drawn is not None:
        after = np.take_along_axis(after, drawn.images[None], 2)
        before = np.take_along_axis(before, drawn.images, 1)
    before = before.mean(1)
    share = np.where(before >= KNOWN, after.mean(2) / np.maximum(before, 1e-9), np.nan)
    gone, rest = list(erased), [place for place in range(len(before)) if place not in erased]
    chosen = (gone, rest) if drawn is None else (drawn.erased, drawn.kept)
    return 1 - np.nanmean(share[:, chosen[0]], 1), np.nanmean(share[:, chosen[1]], 1), np.nanmin(share[:, rest], 1)


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


def kept_at(run: Run, level: float, drawn: Drawn | None = None, *, worst: bool = False) -> float:
    """Relative PSR of a run at matched erasure, as it is or in a resample."""
    figures = relative(run.after, run.before, run.erased, drawn)
    return at_level(figures[0], figures[2 if worst else 1], level)


def resampled(runs: Sequence[tuple[Run, Run]], measure: Callable[[Run, Drawn | None], float]) -> tuple[float, Array]:
    """The mean paired difference over runs, and its draws: of splits, of seeds within each, of classes and images.

    All runs of a draw have the same images, as they were sampled from the same prompts and seeds.
    """
    draws = np.random.default_rng(0)
    by_split: dict[str, list[tuple[Run, Run]]] = {}
    for pair in runs:
        by_split.setdefault(pair[0].split, []).append(pair)
    splits = list(by_split.values())

    def mean(values: Sequence[float]) -> float:
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

    def one_draw() -> float:
        shapes = {pair[0].before.shape for pair in runs}
        images = {shape: draws.integers(shape[1], size=shape) for shape in sorted(shapes)}
        values: list[float] = []
        for split in draws.integers(len(splits), size=len(splits)):
            one = splits[split][0][0]
            gone = np.array(one.erased)
            rest = np.array([place for place in range(len(one.before)) if place not in gone])
            drawn = Drawn(images[one.before.shape], draws.choice(gone, len(gone)), draws.choice(rest, len(rest)))
            for place in draws.integers(len(splits[split]), size=len(splits[split])):
                first, second = splits[split][place]
                values.append(measure(first, drawn) - measure(second, drawn))
        return mean(values)

    found = [one_draw() for _ in range(RESAMPLES)]
    return mean([measure(a, None) - measure(b, None) for a, b in runs]), np.array(found)


def difference(
    runs: Sequence[tuple[Run, Run]], measure: Callable[[Run, Drawn | None], float]
) -> tuple[float, float, float]:
    """The mean paired difference with its 95 % interval."""
    value, draws = resampled(runs, measure)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return value, float(low), float(high)


def pairs(runs: Sequence[Run], first: str, second: str, regime: str, world: str = "fashion") -> list[tuple[Run, Run]]:
    """The runs of two arms on the same tasks of a world."""
    chosen = {(run.arm, run.split, run.seed): run for run in runs if (run.regime, run.world) == (regime, world)}
    tasks = sorted({(split, seed) for _, split, seed in chosen})
    found = [(chosen.get((first, *task)), chosen.get((second, *task))) for task in tasks]
    return [(a, b) for a, b in found if a and b]


def figure_at(run: Run, name: str, level: float) -> float:
    """A figure of the tests at matched erasure."""
    erased = relative(run.after, run.before, run.erased)[0]
    return at_level(erased, np.array([test[name] for test in run.row["tests"]], dtype=float), level)
