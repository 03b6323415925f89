"""Results of hiding.py and its neighbours, put together: a row for every run, headlines of `balanced` over its cells.

python benchmarks/hiding_report.py writes results/hiding.json from results/hiding/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hiding import EMOJI, KEPT, OTHERS, PLAIN_SEED, SAMPLINGS, TEST
from hiding_measures import worst_kind
from hiding_panels import CELLS
from record import DOCS, RESULTS, headline, mean_interval, write_result, write_table

from logsnr.core.config import read_json

Run = dict[str, Any]
OF_TARGET: dict[str, Callable[[dict[str, Any]], float]] = {
    "hidden": lambda found: 1 - found["plain"]["share"],
    "leakage_upper95": lambda found: found["plain"]["upper95"],
    "hidden_paraphrase": lambda found: found["hidden"],
    "recovered": lambda found: found["recovered"],
    "mse_ratio": lambda found: found["mse_ratio"],
    "label_agreement": lambda found: found["label_agreement"],
    "preserved": lambda found: found["preserved"],
    "preserved_worst": lambda found: found["preserved_worst"],
    "preserved_mse_ratio": lambda found: found["preserved_mse_ratio"],
    "preserved_with_key": lambda found: found["preserved_with_key"],
    "wrong_key_excess": lambda found: worst_kind(found)[1] - (1 - found["hidden"]),
    "blended_excess": lambda found: found["wrong_key"]["blended"]["share"] - (1 - found["hidden"]),
    "off_target_quality": lambda found: found["hidden_quality"],
    **{f"near_{sigma}": lambda found, sigma=sigma: found["near"][sigma]["share"] for sigma in ("0.1", "0.3", "1.0")},
}
"""A target's figures; the wrong key is the worst of all kinds, so its mean is no mean over kinds. A key blended with as
much noise is a near one: it has a figure of its own."""
PAGE = DOCS / "hiding.md"
GOALS = {
    "hidden": (0.97, ">="),
    "leakage_upper95": (0.01, "<="),
    "hidden_paraphrase": (0.95, ">="),
    "recovered": (0.97, ">="),
    "mse_ratio": (0.25, "<="),
    "preserved": (0.97, ">="),
    "preserved_with_key": (0.97, ">="),
    "wrong_key_excess": (0.02, "<="),
    "off_target_quality": (0.8, ">="),
    "cross_unlock_diagonal": (0.95, ">="),
    "cross_unlock_off": (0.05, "<="),
}


def row_of(run: Run) -> dict[str, Any]:
    """A run's figures, means over its targets; with several keys also what the right and the other ones open."""
    targets = list(run["figures"].values())
    means = {name: _mean([figure(found) for found in targets]) for name, figure in OF_TARGET.items()}
    others = [seen["share"] for found in targets for seen in found["unlock"].values()]
    crossed = {"cross_unlock_diagonal": means["recovered"], "cross_unlock_off": _mean(others)} if others else {}
    told = {name: run[name] for name in ("world", "arm", "targets", "seed", "hide_seconds", "evaluation_equivalents")}
    worst = {name: worst_kind(found)[0] for name, found in run["figures"].items()}
    return {**told, **means, **crossed, "worst_wrong_key": worst, "figures": run["figures"]}


def headlines(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over cells and seeds with intervals over runs, where there are any."""
    found = []
    for name, (goal, sense) in GOALS.items():
        if values := [row[name] for row in rows if name in row]:
            found.append(headline(name, _mean(values), goal, sense, mean_interval(values)))
    return found


def attack_row(found: dict[str, Any]) -> dict[str, Any]:
    """An attack on hidden weights, beside the same on weights that never saw the class."""
    if "success_rate" not in found:
        return {"part": "no attack", **found}
    reached = {f"{side}half_at": half_at(found[f"{side}curve"]) for side in ("", "control_")}
    return {"part": "attack", **found, "excess": found["success_rate"] - found["control_rate"], **reached}


def half_at(curve: Sequence[Sequence[float]]) -> float | None:
    """The first place on a curve of (budget, rate) where half of the images show the class."""
    return next((place for place, rate in curve if rate >= 0.5), None)


SHOWN = {
    "hidden, held-out templates": "hidden_paraphrase",
    "of so many plain prompts at most leak (95 %)": "leakage_upper95",
    "with the key, over the original": "recovered",
    "squared difference to the original's image of the seed, over that of two seeds": "mse_ratio",
    "same class as the original's image": "label_agreement",
    "other classes, without the key": "preserved",
    "the worst of them": "preserved_worst",
    "other classes, with the key": "preserved_with_key",
    "another concept's key opens": "cross_unlock_off",
    "worst wrong key, above the hidden level": "wrong_key_excess",
    "a key with as much noise again (near, not wrong), above it": "blended_excess",
    "a key with noise of 0.1 of its size opens": "near_0.1",
    "of 0.3": "near_0.3",
    "of its size": "near_1.0",
    "confidence in what is drawn instead, over kept classes": "off_target_quality",
}
"""What the documentation says of a run."""
BRIEF = ("hidden_paraphrase", "recovered", "mse_ratio", "preserved", "preserved_with_key", "wrong_key_excess")
"""And of an arm."""


def cells_table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Means over seeds: a column for each cell of `balanced`, a line for each figure."""
    cells = {tuple(row["targets"]): [other for other in rows if other["targets"] == row["targets"]] for row in rows}
    found = [["", *(", ".join(targets) for targets in cells)], ["seeds", *(str(len(own)) for own in cells.values())]]
    found += [[name, *(_shown(own, figure) for own in cells.values())] for name, figure in SHOWN.items()]
    seconds = [f"{_mean([row['hide_seconds'] for row in own]):.0f}" for own in cells.values()]
    return [*found, ["seconds of one busy core", *seconds]]


def arms_table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Means over seeds: a line for each arm and each cell that it was run on, a column for each figure."""
    arms = dict.fromkeys((row["arm"], tuple(row["targets"])) for row in rows)
    found = [["arm", "hides", *BRIEF]]
    for arm, targets in arms:
        own = [row for row in rows if (row["arm"], tuple(row["targets"])) == (arm, targets)]
        found.append([arm, ", ".join(targets), *(_shown(own, figure) for figure in BRIEF)])
    return found


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """What the page on hiding has of the result."""
    runs = [row for row in result["rows"] if row.get("world") == "fashion"]
    cells = [row for row in runs if row["arm"] == "balanced"]
    return {"hiding cells": cells_table(cells), "hiding arms": arms_table(runs)}


def _shown(rows: Sequence[dict[str, Any]], figure: str) -> str:
    values = [row[figure] for row in rows if figure in row]
    return f"{_mean(values):.3f}" if values else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    places = [path for world in CELLS for path in sorted(KEPT.glob(f"{world}-*.json"))]
    rows = [row_of(json.loads(path.read_text())) for path in places]
    reported = [row for row in rows if row["world"] == "fashion" and row["arm"] == "balanced"]
    protocol = {
        "name": "hiding",
        "judge": "second",
        "cells": CELLS,
        "images": {"hidden class": TEST.num_images // 10, "each other class": OTHERS["test"], "emoji": EMOJI["test"]},
        "first_seed": {"held-out templates": TEST.first_seed, "plain": PLAIN_SEED},
        "sampling": {world: [each.steps, each.guidance_scale] for world, each in SAMPLINGS.items()},
        "intervals": "95 %, resamples of runs",
    }
    attacked = [attack_row(json.loads(path.read_text())) for path in sorted(KEPT.glob("attack-*.json"))]
    more = [json.loads(path.read_text()) for kind in ("keys", "rival") for path in sorted(KEPT.glob(f"{kind}-*.json"))]
    write_result("hiding", protocol, rows + attacked + more, headlines(reported))
    for name, table in tables(read_json(RESULTS / "hiding.json")).items():
        write_table(PAGE, name, table)


if __name__ == "__main__":
    main()
