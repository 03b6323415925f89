"""Erasure on `fashion`: what every method keeps at the strength at which the targets are gone.

    python benchmarks/erasure.py [--arms EAP ESD ...] [--splits A A' ...] [--seeds 0 1 2] [--regime informed]

Every method has one knob of strength. A run looks at all strengths with the first judge on seeds and templates that are
not reported, and then measures with the second judge, on held-out templates and fresh seeds, those strengths alone that
bracket the levels of 90, 95 and 99 % of relative erasure. What is done is kept in results/erasure/, so that the whole
(hours) can be made in pieces and by several processes. Hypotheses and their tests: erasure_hypotheses.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from erasure_arms import ARMS, MAIN, Snapshot, Task, task_of
from record import RESULTS
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.evaluation.erasure import Judged, class_labels, erasure_figures, judged
from logsnr.metrics.judge import Judge
from logsnr.models.pipeline import network_of
from logsnr.solvers.config import SampleConfig
from logsnr.worlds.load import load_world

LEVELS = (0.90, 0.95, 0.99)
SAMPLING = SampleConfig(steps=10, guidance_scale=3.0)
COUNTS = {"fashion": (200, 1000), "emoji": (1000, 3000)}
"""Images of a look, and of a test."""
LOOK_SEED, TEST_SEED = 5_000_000, 50_000_000
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
HALVES = {"A": (0, 1, 2, 7, 9), "B": (1, 2, 7, 8, 9)}
"""Two halves of the classes, drawn at random once; their complements are A' and B'."""
KEPT = RESULTS / "erasure"


def splits() -> dict[str, tuple[str, ...]]:
    """Two halves with their complements, and every class alone."""
    found = {}
    for name, half in HALVES.items():
        found[name] = tuple(CLASSES[label] for label in half)
        found[f"{name}'"] = tuple(label for label in CLASSES if label not in found[name])
    return {**found, **{name: (name,) for name in CLASSES}}


class Bench:
    """The world, and images of the same prompts and seeds before and after an edit."""

    def __init__(self, model: str = "fashion") -> None:
        self.pipe, self.world = logsnr.load(model), load_world(model)
        self.judges = {"look": self.world.judge(), "test": self.world.judge(second=True)}
        self.before: dict[str, Judged] = {}

    def images(self, what: str, sampling: SampleConfig = SAMPLING) -> tuple[Tensor, Tensor]:
        """Images and the classes asked for, of the look or of the test."""
        place = ("look", "test").index(what)
        count, seed = COUNTS[self.world.name][place], (LOOK_SEED, TEST_SEED)[place]
        prompts, labels = self.world.source.ask(count, held_out=what == "test")
        made = logsnr.sample(self.pipe, prompts, seeds=range(seed, seed + count), config=sampling, batch_size=100)
        return made.images, labels

    def judged(self, what: str, sampling: SampleConfig = SAMPLING) -> Judged:
        judge: Judge = self.judges[what]
        return judged(judge, *self.images(what, sampling))

    def measure(self, snapshot: Snapshot, targets: Sequence[str], what: str) -> dict[str, Any]:
        """The figures of an edit; the network comes back as it was."""
        if what not in self.before:
            self.before[what] = self.judged(what)
        own = dict(network_of(self.pipe).named_parameters())
        old = {name: own[name].detach().clone() for name in snapshot.tensors}
        with torch.no_grad():
            for name, value in snapshot.tensors.items():
                own[name].copy_(value)
            scale = SAMPLING.guidance_scale if snapshot.guidance is None else snapshot.guidance
            after = self.judged(what, replace(SAMPLING, negative=snapshot.negative, guidance_scale=scale))
            for name, value in old.items():
                own[name].copy_(value)
        names = self.world.captions.names
        erased = class_labels(targets, names)
        figures = erasure_figures(self.before[what], after, erased, [found[0] for found in names])
        hits = {"hits": _bits(after.hits(1)), "hits_before": _bits(self.before[what].hits(1))} if what == "test" else {}
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
    start = time.monotonic()
    snapshots = list(ARMS[arm](bench.pipe, task))
    trained = time.monotonic() - start
    looks = [bench.measure(snapshot, task.targets, "look") for snapshot in snapshots]
    tests = [bench.measure(snapshots[found], task.targets, "test") for found in brackets(looks)]
    row = {
        "arm": arm,
        "regime": regime,
        "targets": list(task.targets),
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
    parser.add_argument("--splits", nargs="+", default=["A", "A'", "B", "B'"], choices=list(splits()))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--regime", default="informed", choices=["informed", "oracle-free"])
    options = parser.parse_args()
    bench: Bench | None = None
    for split in options.splits:
        for seed in options.seeds:
            for arm in options.arms:
                place = KEPT / f"fashion-{options.regime}-{split}-{arm}-{seed}.json".replace("'", "c").replace(" ", "_")
                if place.exists():
                    continue
                bench = bench or Bench()
                informed = options.regime == "informed"
                task = task_of(bench.world.captions, splits()[split], 70_000 + seed, informed=informed)
                row = run(bench, arm, task, options.regime, place)
                shown = [{k: test[k] for k in ("strength", "relative_esr1", "relative_psr1")} for test in row["tests"]]
                print(f"{place.stem}, {row['seconds']} s: {json.dumps(shown)}", flush=True)


if __name__ == "__main__":
    main()
