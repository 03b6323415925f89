"""Results of continual.py, put together: a row for every run, headlines of the greatest tier, and the page's table.

python benchmarks/continual_report.py writes results/continual.json from results/continual/, and a table into the docs.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from continual import KEPT, ORDER, TIERS, TUNED
from record import DOCS, RESULTS, headline, write_result, write_table

from logsnr.core.config import read_json
from logsnr.metrics.bounds import t_interval

OURS, BESIDE = "gppdm-plus", {"gppdm": "replay", "gppdm-plus": "replay-plus"}
"""What headlines are of; and pairs that differ by prototypes and projection alone, reported beside them."""
REAL = ("fashion", "mnist5k", "digits")
"""Tiers that headlines can be of, the greatest first."""


def results() -> Iterator[dict[str, Any]]:
    """All runs that are reported."""
    for place in sorted(KEPT.glob("*.json")):
        found = json.loads(place.read_text())
        if found["seed"] < TUNED:
            yield found


def paired(runs: Sequence[dict[str, Any]], tier: str, first: str, second: str, figure: str) -> list[float]:
    """Differences of a figure by seed."""
    told = [run for run in runs if run["tier"] == tier and not run.get("holds_everything")]
    by = {(run["strategy"], run["seed"]): run[figure] for run in told}
    return [by[first, seed] - by[second, seed] for name, seed in by if name == first and (second, seed) in by]


def headlines(runs: Sequence[dict[str, Any]], tier: str) -> list[dict[str, Any]]:
    """Differences of ours to others on a tier, with paired t intervals, and the greatest drift of exact runs."""
    found = []
    for name, figure, sign, goal in (
        ("accuracy_gain_over_replay_low", "final_accuracy", 1.0, 0.02),
        ("forgetting_gain_over_replay_low", "forgetting_max", -1.0, 0.0001),
    ):
        gains = [sign * value for value in paired(runs, tier, OURS, "replay", figure)]
        low, high = t_interval(torch.tensor(gains))
        found.append(headline(name, low, goal, ">=", (low, high)))
    for name, first, second, goal, sense in (
        ("accuracy_gain_over_equal_bytes", OURS, "er-state", -1.0, ">="),
        ("joint_gap", "joint", OURS, 0.05, "<="),
    ):
        if len(gains := paired(runs, tier, first, second, "final_accuracy")) > 1:
            found.append(headline(name, statistics.fmean(gains), goal, sense, t_interval(torch.tensor(gains))))
    exact = [run for run in runs if run["strategy"] in ORDER]  # ablations project otherwise, or not at all
    drifts = [each["key_value_drift"] for run in exact for each in run["experiences"] if "key_value_drift" in each]
    return [*found, headline("key_value_drift", max(drifts), 1e-5, "<=")]


def report() -> None:
    """Rows of all runs, and headlines of the greatest tier that has both ours and ``replay``."""
    runs = list(results())
    told = [tier for tier in REAL if len(paired(runs, tier, OURS, "replay", "final_accuracy")) > 1]
    gains = {tier: paired(runs, tier, "replay", "finetune", "final_accuracy") for tier in TIERS}
    protocol = {
        "name": "continual",
        "headlines_of": told[0] if told else None,
        "ours": OURS,
        "of_the_gains_over_replay": "ours also replays more and without guidance, and its classifier has soft targets "
        "and noise; what prototypes and projection add at equal replay is gain_of_prototypes_and_projection",
        "accuracy": "among all classes seen; task_il has those within the experience's own classes",
        "intervals": "95 %, t over seeds, paired",
        "exemplars": "no difference is taken to exemplars that hold all images",
        "gain_of_prototypes_and_projection": {
            tier: {
                name: beside for name in BESIDE if (beside := paired(runs, tier, name, BESIDE[name], "final_accuracy"))
            }
            for tier in TIERS
        },
        "replay_beats_finetune_on_every_seed": {tier: min(found) > 0 for tier, found in gains.items() if found},
    }
    write_result("continual", protocol, runs, headlines(runs, told[0]) if told else [])
    for name, table in tables(read_json(RESULTS / "continual.json")).items():
        write_table(DOCS / "continual.md", name, table)


def tables(result: dict[str, Any]) -> dict[str, list[list[str]]]:
    """What the page has of the result: a line for each strategy of each tier, means over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in result["rows"]:
        groups.setdefault((run["tier"], run["strategy"]), []).append(run)
    order = sorted(groups, key=lambda group: (list(TIERS).index(group[0]), -_mean(groups[group], _final)))
    titles = ("data", "strategy", "seeds", "accuracy", "in its own experience", "forgetting", "KB carried", "minutes")
    return {"continual": [list(titles), *(_line(*group, groups[group]) for group in order)]}


def _line(tier: str, name: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    carried = _mean(runs, lambda run: sum(run["experiences"][-1]["bytes"].values()) / 1024)
    minutes = _mean(runs, lambda run: sum(sum(each["seconds"].values()) for each in run["experiences"]) / 60)
    told = [_final, lambda run: run["task_il"]["final_accuracy"], lambda run: run["forgetting_max"]]
    spread = f" ± {statistics.stdev(map(_final, runs)):.3f}" if len(runs) > 1 else ""
    final, masked, forgotten = (f"{_mean(runs, figure):.3f}" for figure in told)
    return [tier, name, str(len(runs)), final + spread, masked, forgotten, f"{carried:.0f}", f"{minutes:.0f}"]


def _final(run: dict[str, Any]) -> float:
    return run["final_accuracy"]


def _mean(runs: Sequence[dict[str, Any]], figure: Callable[[dict[str, Any]], float]) -> float:
    return statistics.fmean(map(figure, runs))


if __name__ == "__main__":
    report()
