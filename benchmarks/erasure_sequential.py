"""Request after request: erasures that keep the earlier ones, against naive, merged and joint ones.

    python benchmarks/erasure_sequential.py [--world fashion] [--seeds 0 1 2]

`fashion` has five requests, `emoji` twelve. *protected* keeps what earlier requests erased by the update projection of
``erase --after``; *naive* goes on from the last edit without; *merged* adds up edits that were each made of the
original; *joint* erases all at once, with the steps and the strength of all requests together. All edit keys and values
alone, and what is protected keeps 99 % of the energy of its text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from erasure import KEPT, Bench
from erasure_arms import Snapshot
from erasure_tasks import task_of
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.erasure.config import EraseConfig, preset
from logsnr.models.delta import Delta
from logsnr.models.pipeline import network_of

REQUESTS = {
    "fashion": ("trouser", "sandal", "bag", "pullover", "dress"),
    "emoji": (
        *("a fox", "a hamburger", "a rocket", "a ghost", "a soccer ball", "a crown"),
        *("a sunflower", "a sailboat", "a guitar", "a robot", "a cactus", "a house"),
    ),
}
SEED = 85_000
Tensors = dict[str, Tensor]


def config_of(bench: Bench, targets: Sequence[str], seed: int, protected: Sequence[str] = ()) -> EraseConfig:
    """A request: the preset, on keys and values."""
    task = task_of(bench.world.captions, targets, seed, informed=True)
    task = replace(task, words=tuple(word for word in task.words if word not in protected))
    base = preset("eap", *targets)
    return replace(
        base,
        modules=("xattn-kv",),
        protected=tuple(protected),
        protected_energy=0.99 if protected else 1.0,
        candidates=task.candidates(),
        run=replace(base.run, seed=seed),
    )


def after_one_another(bench: Bench, requests: Sequence[str], seed: int, *, protect: bool) -> Tensors:
    """The edit that all requests leave, each made of the model as the earlier ones left it."""
    pipe = logsnr.load(bench.world.name)
    done: list[str] = []
    changed: Tensors = {}
    for place, target in enumerate(requests):
        delta = logsnr.erase(pipe, config=config_of(bench, [target], seed + place, done if protect else ()))
        delta.merge(pipe)
        done.append(target)
        changed |= _plain(delta)
    return changed


def merged(bench: Bench, requests: Sequence[str], seed: int) -> Tensors:
    """The sum of what each request alone changes."""
    own = dict(network_of(bench.pipe).named_parameters())
    total: Tensors = {}
    for place, target in enumerate(requests):
        delta = logsnr.erase(bench.pipe, config=config_of(bench, [target], seed + place))
        for name, value in _plain(delta).items():
            total[name] = total.get(name, own[name].detach()) + value - own[name].detach()
    return total


def joint(bench: Bench, requests: Sequence[str], seed: int) -> Tensors:
    """All requests at once, for as many steps as they have one by one."""
    config = config_of(bench, requests, seed)
    run, strength = replace(config.run, steps=config.run.steps * len(requests)), config.strength * len(requests)
    return _plain(logsnr.erase(bench.pipe, config=replace(config, run=run, strength=strength)))


def _plain(delta: Delta) -> Tensors:
    return {name.partition(".")[2]: value for name, value in delta.tensors.items()}


ARMS: dict[str, Callable[[Bench, Sequence[str], int], Tensors]] = {
    "protected": lambda *given: after_one_another(*given, protect=True),
    "naive": lambda *given: after_one_another(*given, protect=False),
    "merged": merged,
    "joint": joint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="fashion", choices=list(REQUESTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    chosen = parser.parse_args()
    bench: Bench | None = None
    for seed in chosen.seeds:
        for arm in chosen.arms:
            place = KEPT / f"sequential-{chosen.world}-{arm}-{seed}.json"
            if place.exists():
                continue
            bench, start = bench or Bench(chosen.world), time.monotonic()
            requests = REQUESTS[chosen.world]
            tensors = ARMS[arm](bench, requests, SEED + 100 * seed)
            found = bench.measure(Snapshot(0.0, tensors, 0), requests, "test")
            row: dict[str, Any] = {"arm": arm, "world": chosen.world, "seed": seed, "requests": requests, **found}
            write_json(place, {**row, "seconds": round(time.monotonic() - start, 1)})
            shown = {name: found[name] for name in ("relative_esr1", "relative_psr1", "worst_erased_relative_esr1")}
            print(place.stem, json.dumps(shown), f"{time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
