"""How well erasures on `fashion` hold: the same attacks on what every method made, each beside its control.

    python benchmarks/erasure_attacks.py [--arms EAP "EAP, robust" ...] [--targets ...] [--attacks ...] [--tune]

A method erases one concept by its preset; the edit is measured like those of erasure.py, then attacked. The headline
was chosen before the first run: UnlearnDiffAtk, against which AdvUnlearn was made, its success minus its control,
meaned over targets, of our robust preset over AdvUnlearn's. All other attacks stand beside. What is done is kept in
results/erasure/. ``--tune`` takes other targets and seeds, and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from typing import Any

from erasure import KEPT, Bench
from erasure_arms import Snapshot
from erasure_tasks import task_of

import logsnr
from logsnr.attacks.config import ATTACKS, AttackConfig
from logsnr.attacks.world import attack_world
from logsnr.core.artifact import write_json
from logsnr.erasure.config import preset
from logsnr.evaluation.erasure import class_labels
from logsnr.models.delta import Delta

ARMS = {"EAP": "eap", "ESD": "esd", "UCE": "uce-tensor", "EAP, robust": "robust", "AdvUnlearn": "advunlearn"}
TARGETS, TUNED = ("trouser", "bag", "sneaker"), ("ankle boot",)
SEED, TUNING_SEED = 80_000, 90_000
BUDGETS: dict[str, dict[str, Any]] = {
    "noise-probe": {"num_images": 50},
    "image-to-image": {"num_images": 50},
    "inversion": {"num_images": 50, "steps": (0, 10, 25, 50, 100), "learning_rate": 0.1},
    "own-prompt": {"num_images": 50, "steps": (0, 25, 50, 100)},
    "relearn": {"num_images": 50, "steps": (0, 10, 25, 50)},
    "relearn-lora": {"num_images": 50, "steps": (0, 10, 25, 50)},
    "unlearndiffatk": {"num_references": 24},
    "p4d-n": {"num_references": 24},
    "p4d-k": {"num_references": 24},
    "ring-a-bell": {"num_references": 24},
}


def erased(bench: Bench, arm: str, target: str, seed: int) -> Delta:
    """What the arm's preset makes of the model; closed forms preserve all that the list has."""
    task = task_of(bench.world.captions, (target,), seed, informed=True)
    config = preset(ARMS[arm], target)
    config = replace(config, candidates=task.candidates())
    if config.method == "uce":
        config = replace(config, preserved=task.prompts, templates=task.templates)
    return logsnr.erase(bench.pipe, config=replace(config, run=replace(config.run, seed=seed)))


def run(bench: Bench, arm: str, target: str, seed: int, attacks: list[str], *, what: str) -> dict[str, Any]:
    """The edit's own figures, and every attack on it."""
    start, delta = time.monotonic(), erased(bench, arm, target, seed)
    tensors = {name.partition(".")[2]: value for name, value in delta.tensors.items()}
    spent = delta.record.metrics.get("evaluation_equivalents", 0)
    found = bench.measure(Snapshot(delta.record.config["strength"], tensors, spent), (target,), what)
    edited = logsnr.load("fashion")
    delta.merge(edited)
    names = bench.world.captions.names
    label = class_labels([target], names)[0]
    other = (label + 1) % len(names)
    results = {}
    for name in attacks:
        config = AttackConfig(name, **BUDGETS[name], seed=seed, first_seed=seed * 100)
        results[name] = asdict(attack_world(bench.world, edited, bench.pipe, label, other, config))
        print(arm, target, name, results[name]["success_rate"], results[name]["control_rate"], flush=True)
    seconds = round(time.monotonic() - start, 1)
    return {"arm": arm, "target": target, "seed": seed, "figures": found, "attacks": results, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--targets", nargs="+")
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--tune", action="store_true")
    chosen = parser.parse_args()
    if not chosen.tune and chosen.attacks != list(ATTACKS):
        parser.error("a part that is kept has all attacks: choose some with --tune only")
    bench: Bench | None = None
    for target in chosen.targets or (TUNED if chosen.tune else TARGETS):
        for arm in chosen.arms:
            place = KEPT / f"attacks-{target}-{arm}.json".replace(" ", "_")
            if not chosen.tune and place.exists():
                continue
            bench = bench or Bench()
            seed, what = (TUNING_SEED, "look") if chosen.tune else (SEED, "test")
            row = run(bench, arm, target, seed, chosen.attacks, what=what)
            shown = {name: row["figures"][name] for name in ("relative_esr1", "relative_psr1")}
            print(arm, target, json.dumps(shown), f"{row['seconds']} s", flush=True)
            if not chosen.tune:
                write_json(place, row)


if __name__ == "__main__":
    main()
