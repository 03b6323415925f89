"""Results of erasure.py, put together: what each method keeps at matched erasure, and paired differences.

python benchmarks/erasure_report.py writes results/erasure.json from results/erasure/.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from erasure import LEVELS, SAMPLING
from erasure_panels import IMAGES
from erasure_parts import PARTS, ratio
from erasure_runs import Run, difference, figure_at, kept_at, pairs, read
from erasure_verdicts import verdicts
from record import RESAMPLES, RESULTS, headline, mean_interval, write_result


def table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for every arm and regime: means over its tasks at every level, how often it was reached, and its price."""
    rows = []
    for world, arm, regime in sorted({(run.world, run.arm, run.regime) for run in runs}):
        mine = [run for run in runs if (run.world, run.arm, run.regime) == (world, arm, regime)]
        row: dict[str, Any] = {"world": world, "arm": arm, "regime": regime, "runs": len(mine)}
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
    ("psr_gain_over_esd_low", "ESD", 0.95, 0.0001),
    ("psr_gain_over_esd_x0_low", "ESD + x0", 0.95, 0.0001),
    ("psr_gain_over_uce", "UCE", 0.90, -1.0),
    ("psr_gain_over_ca", "CA", 0.90, -1.0),
)
"""Gains are in points, at a level of erasure: UCE and CA hardly ever reach 95 %."""


def paired(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Paired differences of what is kept at a level, in both regimes; the informed ones are headlines."""
    rows, headlines = [], []
    for name, second, level, goal in HEADLINES:
        for first, regime in itertools.product(OURS, ("informed", "oracle-free")):
            matched = pairs(runs, first, second, regime)
            counts = reached(matched, level)
            told = {"difference": f"{first} - {second}", "regime": regime, "level": level, "runs": len(matched)}
            if not counts["both_reached"]:
                rows += [{**told, **counts}] * bool(matched)
                continue
            value, low, high = difference(matched, lambda run, drawn, at=level: 100 * kept_at(run, at, drawn))
            rows.append({**told, **counts, "value": value, "low": low, "high": high})
            if (first, regime) == (OURS[0], "informed"):
                headlines.append(headline(name, low if name.endswith("low") else value, goal, ">=", (low, high)))
    return rows, headlines


def reached(matched: Sequence[tuple[Run, Run]], level: float) -> dict[str, int]:
    """How many runs of the first and of the second reach the level; the difference is over those where both do."""
    finite = np.isfinite([[kept_at(run, level) for run in pair] for pair in matched]).reshape(-1, 2)
    first, second = finite.sum(0).tolist()
    return {"first_reached": first, "second_reached": second, "both_reached": int(finite.all(1).sum())}


def of_ours(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Headlines on ours alone at 95 %: what is drawn instead, the worst kept concept; EAP's price over the released."""
    mine = [run for run in runs if (run.world, run.arm, run.regime) == ("fashion", OURS[0], "informed")]
    quality = [figure_at(run, "off_target_quality", 0.95) for run in mine]
    worst = [kept_at(run, 0.95, worst=True) for run in mine]
    found = [
        headline(name, float(np.nanmean(values)), goal, ">=", mean_interval(values))
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


def main() -> None:
    runs = read()
    rows, headlines = paired(runs)
    headlines += of_ours(runs)
    atlases = [json.loads(path.read_text()) for path in sorted((RESULTS / "erasure").glob("atlas-*-ESD.json"))]
    rows += verdicts(runs, atlases)
    for part in PARTS:
        more, found = part(RESULTS / "erasure")
        rows, headlines = rows + more, headlines + found
    protocol = {
        "name": "erasure",
        "images": {world: counts[1] for world, counts in IMAGES.items()},
        "prompts": "of held-out templates, the same seeds before and after",
        "evaluations": SAMPLING.steps,
        "at_level": "relative PSR, interpolated between the tests that bracket a relative ESR",
        "intervals": f"95 %, {RESAMPLES} resamples of splits, seeds, classes and images, paired",
        "hypotheses": "benchmarks/erasure_hypotheses.md",
    }
    write_result("erasure", protocol, [*table(runs), *rows], headlines)


if __name__ == "__main__":
    main()
