"""Erasure: what every method keeps at the strength at which the targets are gone.

    python benchmarks/erasure.py [--world fashion] [--arms EAP ESD ...] [--splits A A' ...] [--seeds 0 1 2]
                                 [--regime informed] [--quick]

Every method has one knob of strength. A run looks at rising strengths, until the highest level is reached, with the
first judge on seeds and templates that are not reported, and then measures with the second judge, on held-out templates
and fresh seeds, those strengths alone that bracket the levels of 90, 95 and 99 % of relative erasure. What is done is
kept in results/erasure/, so that the whole (hours) can be made in pieces and by several processes. ``--quick`` is one
split and one seed of five arms. Hypotheses and their tests: erasure_hypotheses.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from erasure_arms import ADAPTED, ARMS, MAIN, Snapshot
from erasure_panels import IMAGES, Panel, erased_classes, panel
from erasure_tasks import Task, task_of, tasks
from record import RESULTS
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.evaluation.erasure import Judged, erasure_figures
from logsnr.metrics.judge import Judge
from logsnr.models.pipeline import network_of
from logsnr.solvers.config import SampleConfig
from logsnr.worlds.load import load_world

LEVELS = (0.90, 0.95, 0.99)
SAMPLING = SampleConfig(steps=10, guidance_scale=3.0)
LOOK_SEED, TEST_SEED = 5_000_000, 50_000_000
KEPT = RESULTS / "erasure"
QUICK = ["EAP", "ESD", "ESD + x0", "UCE", "EAP, random"]


class Bench:
    """The world, and images of the same prompts and seeds before and after an edit."""

    def __init__(self, model: str = "fashion") -> None:
        self.pipe, self.world = logsnr.load(model), load_world(model)
        self.judges = {"look": self.world.judge(), "test": self.world.judge(second=True)}
        self.before: dict[tuple[str, ...], Judged] = {}

    def judged(self, what: str, asked: Panel, sampling: SampleConfig = SAMPLING) -> Judged:
        """What the judge of the look or of the test says of the images of a panel."""
        first = {"look": LOOK_SEED, "test": TEST_SEED}[what]
        seeds = range(first, first + len(asked.prompts))
        made = logsnr.sample(self.pipe, asked.prompts, seeds=seeds, config=sampling, batch_size=100)
        judge: Judge = self.judges[what]
        return asked.read(judge, made.images)

    def unedited(self, targets: Sequence[str], what: str) -> tuple[Panel, Judged]:
        """What is asked for, and what the judge says of it; the first time, nothing may be edited yet."""
        asked = panel(self.world, targets, held_out=what == "test")
        key = (what, *asked.prompts)
        if key not in self.before:
            self.before[key] = self.judged(what, asked)
        return asked, self.before[key]

    def measure(self, snapshot: Snapshot, targets: Sequence[str], what: str) -> dict[str, Any]:
        """The figures of an edit; the network comes back as it was."""
        asked, before = self.unedited(targets, what)
        own = dict(network_of(self.pipe).named_parameters())
        old = {name: own[name].detach().clone() for name in snapshot.tensors}
        with torch.no_grad():
            for name, value in snapshot.tensors.items():
                own[name].copy_(value)
            scale = SAMPLING.guidance_scale if snapshot.guidance is None else snapshot.guidance
            way = {"negative": snapshot.negative, "safe": snapshot.safe, "guidance_scale": scale}
            after = self.judged(what, asked, replace(SAMPLING, **way))
            for name, value in old.items():
                own[name].copy_(value)
        erased, names, _ = erased_classes(self.world.captions, targets)
        figures = erasure_figures(before, after, erased, names)
        hits = {"hits": _bits(after.hits(1)), "hits_before": _bits(before.hits(1))} if what == "test" else {}
        return {"strength": snapshot.strength, "cost": snapshot.evaluation_equivalents, **figures, **hits}


def brackets(looks: Sequence[dict[str, Any]]) -> list[int]:
    """The places of the strengths around each level; the last one alone where a level is not reached."""
    found: set[int] = set()
    for level in LEVELS:
        above = next((place for place, row in enumerate(looks) if (row["relative_esr1"] or 0) >= level), None)
        found |= {len(looks) - 1} if above is None else {max(above - 1, 0), above}
    return sorted(found)


def run(bench: Bench, arm: str, task: Task, regime: str, place: Path) -> dict[str, Any]:
    """One arm on one task: looks at every strength, and tests of those that matter."""
    start, captions = time.monotonic(), bench.world.captions
    bench.unedited(task.targets, "look")
    snapshots: list[Snapshot] = []
    looks: list[dict[str, Any]] = []
    trained, last = 0.0, time.monotonic()
    with closing(ARMS[arm](bench.pipe, task)) as strengths:
        for snapshot in list(strengths) if arm in ADAPTED else strengths:
            trained += time.monotonic() - last
            snapshots.append(snapshot)
            looks.append(bench.measure(snapshot, task.targets, "look"))
            if (looks[-1]["relative_esr1"] or 0) >= LEVELS[-1]:
                break
            last = time.monotonic()
    tests = [bench.measure(snapshots[found], task.targets, "test") for found in brackets(looks)]
    asked, (_, names, _) = panel(bench.world, task.targets, held_out=True), erased_classes(captions, task.targets)
    row = {
        "world": bench.world.name,
        "arm": arm,
        "regime": regime,
        "targets": list(task.targets),
        "classes": [names[label] for label in asked.classes],
        "seed": task.seed,
        "train_seconds": round(trained, 1),
        "seconds": round(time.monotonic() - start, 1),
        **snapshots[-1].more,
        "looks": [{k: v for k, v in row.items() if k in _LOOKED} for row in looks],
        "tests": tests,
    }
    write_json(place, row)
    return row


_LOOKED = ("strength", "cost", "relative_esr1", "relative_psr1", "worst_kept_relative_psr1")


def _bits(hits: Tensor) -> str:
    """Zeros and ones, one an image."""
    return "".join("01"[int(hit)] for hit in hits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=list(MAIN), choices=list(ARMS))
    parser.add_argument("--world", default="fashion", choices=list(IMAGES))
    parser.add_argument("--splits", nargs="+", help="A, A', B, B' by default, or classes; of emoji focus, or others")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--regime", default="informed", choices=["informed", "oracle-free"])
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.arms, options.splits, options.seeds = QUICK, ["A"], [0]
    bench: Bench | None = None
    known, main = tasks(options.world), ["focus"] if options.world == "emoji" else ["A", "A'", "B", "B'"]
    if wrong := [split for split in options.splits or [] if split not in known]:
        parser.error(f"there is no split {wrong[0]!r}: use {', '.join(known)}")
    for split in options.splits or main:
        for seed in options.seeds:
            for arm in options.arms:
                name = f"table-{options.world}-{options.regime}-{split}-{arm}-{seed}.json"
                place = KEPT / name.replace("'", "c").replace(" ", "_")
                if place.exists():
                    continue
                bench = bench or Bench(options.world)
                informed = options.regime == "informed"
                task = task_of(bench.world.captions, known[split], 70_000 + seed, informed=informed)
                row = run(bench, arm, task, options.regime, place)
                shown = [{k: test[k] for k in ("strength", "relative_esr1", "relative_psr1")} for test in row["tests"]]
                print(f"{place.stem}, {row['seconds']} s: {json.dumps(shown)}", flush=True)


if __name__ == "__main__":
    main()
