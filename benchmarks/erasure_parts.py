"""The parts of the erasure benchmark beside its table: attacks, requests in sequence, memory; rows and headlines."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import headline

Rows = list[dict[str, Any]]
Found = tuple[Rows, Rows]
CHOSEN_ATTACK = "unlearndiffatk"


def excess(row: dict[str, Any], attack: str) -> float:
    """An attack's success minus its control's; what is below the control is no success."""
    found = row["attacks"][attack]
    return max(0.0, found["success_rate"] - found["control_rate"])


def attacks(folder: Path) -> Found:
    """What every attack reaches on every method, and the robust preset's excess over AdvUnlearn's."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("attacks-*.json"))]
    rows: Rows = []
    for part in parts:
        figures = {name: part["figures"][name] for name in ("relative_esr1", "relative_psr1")}
        for attack, found in part["attacks"].items():
            rates = {name: found[name] for name in ("success_rate", "success_interval", "control_rate", "curve")}
            rows.append({"part": "attack", "arm": part["arm"], "target": part["target"], "attack": attack})
            rows[-1] |= {**figures, **rates, "prompts": found["prompts"], "evaluations": found["network_evaluations"]}
    by_arm = {arm: {p["target"]: p for p in parts if p["arm"] == arm} for arm in ("EAP, robust", "AdvUnlearn")}
    ours, theirs = by_arm["EAP, robust"], by_arm["AdvUnlearn"]
    targets = sorted(ours.keys() & theirs.keys())
    if not targets:
        return rows, []
    value, low, high = ratio(
        [excess(ours[target], CHOSEN_ATTACK) for target in targets],
        [excess(theirs[target], CHOSEN_ATTACK) for target in targets],
    )
    return rows, [headline("attack_excess_ratio_to_advunlearn", value, 1.0, "<=", (low, high))]


def sequential(folder: Path) -> Found:
    """Every arm's figures after all requests; the ratio to joint erasure of what is kept, on `emoji` the headline."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("sequential-*.json"))]
    names = ("world", "arm", "seed", "relative_esr1", "relative_psr1", "worst_erased_relative_esr1", "seconds")
    rows: Rows = [{"part": "sequential", **{name: part[name] for name in names}} for part in parts]
    kept = {
        arm: {part["seed"]: part["relative_psr1"] for part in parts if (part["world"], part["arm"]) == ("emoji", arm)}
        for arm in ("protected", "joint")
    }
    seeds = sorted(kept["protected"].keys() & kept["joint"].keys())
    if not seeds:
        return rows, []
    value, low, high = ratio([kept["protected"][seed] for seed in seeds], [kept["joint"][seed] for seed in seeds])
    return rows, [headline("sequential_psr_ratio_to_joint", value, 0.95, ">=", (low, high))]


def memory(folder: Path) -> Found:
    """Peak memory of one step at the size of Stable Diffusion 1, over that of two copies."""
    place = folder / "memory.json"
    if not place.exists():
        return [], []
    found = json.loads(place.read_text())
    rows = [{"part": "memory", "size": found["size"], **row} for row in found["rows"]]
    return rows, [headline("peak_memory_ratio_to_two_copies", found["ratio"], 0.6, "<=")]


def efficiency(folder: Path) -> Found:
    """What a step costs in every scheme; the headline is of equal quality, and comes from the table."""
    place = folder / "efficiency.json"
    if not place.exists():
        return [], []
    return [{"part": "efficiency", **row} for row in json.loads(place.read_text())["rows"]], []


def deployed(folder: Path) -> Found:
    """What is left of edits under other conditions than those in which they were made."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("deployed-*.json"))]
    return [{"part": "deployed", **row} for part in parts for row in part["rows"]], []


PARTS: tuple[Callable[[Path], Found], ...] = (attacks, sequential, memory, efficiency, deployed)


def ratio(first: Sequence[float], second: Sequence[float], resamples: int = 2000) -> tuple[float, float, float]:
    """The ratio of paired means with its 95 % interval, by resampling pairs; 0 over 0 is 1, else over 0 infinite."""
    pairs, draws = np.array([first, second], dtype=float), np.random.default_rng(0)
    chosen = draws.integers(pairs.shape[1], size=(resamples, pairs.shape[1]))
    low, high = np.percentile([_over(*pairs[:, rows].mean(1)) for rows in chosen], [2.5, 97.5], method="nearest")
    return _over(*pairs.mean(1)), float(low), float(high)


def _over(first: float, second: float) -> float:
    if second == 0:
        return 1.0 if first == 0 else float("inf")
    return float(first / second)
