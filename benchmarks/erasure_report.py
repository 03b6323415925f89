"""Results of erasure.py, put together: what each method keeps at matched erasure, and paired differences.

python benchmarks/erasure_report.py writes results/erasure.json from results/erasure/.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from erasure import CLASSES, COUNTS, LEVELS, SAMPLING
from erasure_parts import PARTS, ratio
from numpy.typing import NDArray
from record import RESULTS, headline, write_result

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


def difference(
    runs: Sequence[tuple[Run, Run]], measure: Callable[[Run, NDArray[np.int64] | None], float]
) -> tuple[float, float, float]:
    """The mean paired difference over runs and its 95 % interval, by resampling runs, and images within classes."""
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
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return mean(runs, resample=False), float(low), float(high)


def pairs(runs: Sequence[Run], first: str, second: str, regime: str) -> list[tuple[Run, Run]]:
    """The runs of two arms on the same tasks."""
    chosen = {(run.arm, run.split, run.seed): run for run in runs if run.regime == regime}
    tasks = sorted({(run.split, run.seed) for run in runs})
    found = [(chosen.get((first, *task)), chosen.get((second, *task))) for task in tasks]
    return [(a, b) for a, b in found if a and b]


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every arm and regime: means over its tasks at every level, how often it was reached, and its price."""
    rows = []
    for arm, regime in sorted({(run.arm, run.regime) for run in runs}):
        mine = [run for run in runs if (run.arm, run.regime) == (arm, regime)]
        row: dict[str, Any] = {"arm": arm, "regime": regime, "runs": len(mine)}
        for level in LEVELS:
            kept = [kept_at(run, level) for run in mine]
            worst = [kept_at(run, level, worst=True) for run in mine]
            row[f"reached_{level:g}"] = int(np.isfinite(kept).sum())
            row[f"kept_at_{level:g}"] = _mean(kept)
            row[f"worst_kept_at_{level:g}"] = _mean(worst)
        for name in ("adversary_hit_rate", "blind_hit_rate"):
            if known := [run.row[name] for run in mine if name in run.row]:
                row[name] = float(np.mean(known))
        row["train_seconds"] = float(np.mean([run.row["train_seconds"] for run in mine]))
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


OURS = ("EAP, projected", "EAP")
"""Our variant, whose gains are the headlines, as was chosen before the first test; and EAP itself, beside it."""
HEADLINES = (
    ("psr_gain_over_esd_low", "ESD", 0.0001),
    ("psr_gain_over_esd_x0_low", "ESD + x0", 0.0001),
    ("psr_gain_over_uce", "UCE", -1.0),
    ("psr_gain_over_ca", "CA", -1.0),
)
"""Gains are in points."""


def paired(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Paired differences of what is kept at 95 %, in both regimes; the informed ones are headlines."""
    rows, headlines = [], []
    for name, second, goal in HEADLINES:
        for first, regime in itertools.product(OURS, ("informed", "oracle-free")):
            matched = pairs(runs, first, second, regime)
            if not matched:
                continue
            value, low, high = difference(matched, lambda run, images: 100 * kept_at(run, 0.95, images))
            rows.append(
                {"difference": f"{first} - {second}", "regime": regime, "runs": len(matched)}
                | {"value": value, "low": low, "high": high}
            )
            if (first, regime) == (OURS[0], "informed"):
                headlines.append(headline(name, low if name.endswith("low") else value, goal, ">=", (low, high)))
    return rows, headlines


def of_ours(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Headlines on ours alone at 95 %: what is drawn instead, the worst kept concept; EAP's price over the released."""
    mine = [run for run in runs if (run.arm, run.regime) == (OURS[0], "informed")]
    quality = [figure_at(run, "off_target_quality", 0.95) for run in mine]
    worst = [kept_at(run, 0.95, worst=True) for run in mine]
    found = [
        headline(name, float(np.nanmean(values)), goal, ">=", interval(values))
        for name, values, goal in (("off_target_quality", quality, 0.8), ("worst_kept_relative_psr", worst, 0.9))
        if np.isfinite(values).any()
    ]
    priced = pairs(runs, "EAP", "EAP, released scheme", "informed")
    costs = [tuple(figure_at(run, "cost", 0.95) for run in pair) for pair in priced]
    costs = [pair for pair in costs if np.isfinite(pair).all()]
    if costs:
        value, low, high = ratio(*zip(*costs, strict=True))
        found.append(headline("evaluation_ratio_to_released", value, 0.2, "<=", (low, high)))
    return found


def figure_at(run: Run, name: str, level: float) -> float:
    """A figure of the tests at matched erasure."""
    erased = relative(run.after.mean(2), run.before.mean(1), run.erased)[0]
    return at_level(erased, np.array([test[name] for test in run.row["tests"]], dtype=float), level)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over runs."""
    finite = np.array([value for value in values if np.isfinite(value)])
    means = finite[np.random.default_rng(0).integers(len(finite), size=(RESAMPLES, len(finite)))].mean(1)
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def main() -> None:
    runs = read()
    rows, headlines = paired(runs)
    headlines += of_ours(runs)
    for part in PARTS:
        more, found = part(RESULTS / "erasure")
        rows, headlines = rows + more, headlines + found
    protocol = {
        "name": "erasure",
        "world": "fashion",
        "images": f"{COUNTS['fashion'][1]} of held-out templates, the same seeds before and after",
        "evaluations": SAMPLING.steps,
        "at_level": "relative PSR, interpolated between the tests that bracket a relative ESR",
        "intervals": f"95 %, {RESAMPLES} resamples of runs and of images within classes, paired",
        "hypotheses": "benchmarks/erasure_hypotheses.md",
    }
    write_result("erasure", protocol, [*table(runs), *rows], headlines)


if __name__ == "__main__":
    main()
