"""What else takes a class of `fashion` out and gives it back, measured as hiding is.

    python benchmarks/hiding_rivals.py [--rivals ESD "SPM adapter"]

ESD has no key: its weights with adapters that the owner then trains on real images, as many steps as hiding has, are
the key that fine-tuning gives. An SPM adapter is its own lock: whoever leaves it out has the original. What is done is
kept in results/hiding/; hiding_report.py puts it together.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from functools import partial
from typing import Any

from hiding import KEPT, OTHERS, SAMPLING, TEST

import logsnr
from logsnr.attacks.attack import attack
from logsnr.attacks.config import AttackConfig
from logsnr.attacks.world import shows, sought
from logsnr.cli.hidden import Measured
from logsnr.core.artifact import write_json
from logsnr.erasure.config import preset
from logsnr.evaluation.erasure import class_labels
from logsnr.models.pipeline import Pipeline
from logsnr.worlds.load import World, load_world

TARGET, SEED = "ankle boot", 50_000
RIVALS = {"ESD": "esd", "SPM adapter": "spm"}
OWNER = AttackConfig("relearn-lora", num_references=256, steps=(0, 300, 1200), first_seed=SEED * 100, seed=SEED)
"""Adapters as the owner would train them."""


def run(name: str) -> dict[str, Any]:
    """One rival's figures; without a key nothing is brought back but by training adapters."""
    start, world = time.monotonic(), load_world("fashion")
    pipe, public = logsnr.load("fashion"), logsnr.load("fashion")
    (label,) = class_labels([TARGET], world.captions.names)
    config = preset(RIVALS[name], TARGET)
    logsnr.erase(pipe, config=config).merge(public)
    seconds = time.monotonic() - start
    measured = Measured(world, [label], TEST, SAMPLING, kept_images=OTHERS["test"])
    figures = measured.figures(measured.images(pipe, public, None))
    adapters = {"adapters": brought_back(world, public, pipe, label)} if name == "ESD" else {}
    told = {"part": "rival", "rival": name, "target": TARGET, "hide_seconds": round(seconds, 1), "figures": figures}
    return {**told, **adapters, "seconds": round(time.monotonic() - start, 1)}


def brought_back(world: World, public: Pipeline, pipe: Pipeline, label: int) -> dict[str, Any]:
    """The share that shows the class over steps of adapters, of erased weights and of the original's."""
    sides = (sought(world, each, label, OWNER) for each in (public, pipe))
    return asdict(attack(*sides, partial(shows, world.judge(second=True), label), OWNER))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rivals", nargs="+", default=list(RIVALS), choices=list(RIVALS))
    for name in parser.parse_args().rivals:
        place = KEPT / f"rival-{name}.json".replace(" ", "_")
        if not place.exists():
            found = run(name)
            write_json(place, found)
            print(name, {key: found["figures"][key] for key in ("hidden", "preserved", "preserved_worst")}, flush=True)


if __name__ == "__main__":
    main()
