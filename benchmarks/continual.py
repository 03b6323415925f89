"""Continual learning: every strategy on the same streams, class order shuffled by seed.

    python benchmarks/continual.py run [--tier digits] [--strategies gppdm replay ...] [--seeds 1 2 3 4 5]
    python benchmarks/continual.py run --ablations [gradient values ...] --seeds 1
    python benchmarks/continual.py look --strategies gppdm --options '{...}'

Tiers are digits, mnist5k and fashion, and digits-repeating, whose ten experiences show each class twice, half of its
images a time. Strategies share networks, steps, replays and seeds, but for the network of ``replay-vae``, and the
replays and the classifier's targets and noise of those named plus. ``er-state`` keeps as many bytes of images as the
prototypes and the projection of ``gppdm`` or ``gppdm-plus`` weigh in the run of the same seed, ``er-total`` its
generator's too, so that comes first. ``look`` tries options on seed 100 and its validation images, and keeps nothing;
what is run is kept in results/continual/, and continual_report.py puts it together.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import RESULTS

from logsnr.continual.config import STRATEGIES, ContinualConfig, strategy
from logsnr.continual.learner import Learner
from logsnr.core.artifact import write_json
from logsnr.core.config import to_dict
from logsnr.core.errors import InputError
from logsnr.core.steps import finish
from logsnr.data.digits import load_digits
from logsnr.data.fashion import load_fashion
from logsnr.data.mnist import load_mnist5k
from logsnr.data.stream import make_stream, split_classes

KEPT, WORK = RESULTS / "continual", Path("runs") / "continual"
TUNED = 100
LOADERS = {"digits": load_digits, "digits-repeating": load_digits, "mnist5k": load_mnist5k, "fashion": load_fashion}
ORDER = (
    "gppdm-plus",
    "replay",
    "gppdm",
    "replay-plus",
    "replay-vae",
    "finetune",
    "joint",
    "er-state",
    "er-total",
    "cpdm-frozen",
    "cpdm-learned",
    "projection",
)
TIERS: dict[str, dict[str, Any]] = {
    "digits": {"generator_steps": 600, "images_per_class": 64},
    "digits-repeating": {"generator_steps": 600, "images_per_class": 64},
    "mnist5k": {"generator_steps": 1000, "images_per_class": 100, "channels": (16, 32, 64)},
    "fashion": {
        "generator_steps": 1500,
        "images_per_class": 200,
        "channels": (16, 32, 64),
        "classifier_epochs": 3,
        "generator_learning_rate": 1e-3,
    },
}
MORE = STRATEGIES["gppdm-plus"]["images_per_class"] // ContinualConfig().images_per_class
"""How many times as many replays the strategies named plus have."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "no projection": {"projection": "none"},
    "gradient": {"projection": "gradient"},
    "values": {"projected": "values"},
    "queries and outputs too": {"projected": "all"},
    "lone token": {"lone_token": True, "conditioning": "concat", "projected": "values"},
    "nearest class": {"nearest_class_weight": 1e-4},
    **{f"guidance {scale:g}": {"guidance_scale": scale} for scale in (1.0, 4.0)},
    **{f"{steps} steps": {"sampling_steps": steps} for steps in (5, 10, 50)},
    **{f"{count} replays": {"images_per_class": count} for count in (16, 256)},
    "distillation": {"distill_weight": 1.0},
    "redraws": {"redraws": 4},
    "prototypes of half the size": {"prototype_size": 4},
    "prototypes of a quarter": {"prototype_size": 2},
}
"""Changes of gppdm on digits; it has 20 steps, guidance 2 and 64 replays itself."""


def place_of(tier: str, name: str, seed: int) -> Path:
    """Where a run's result is kept."""
    return KEPT / f"{tier}-{name}-{seed}.json".replace(" ", "_")


def config_of(tier: str, name: str, seed: int, changes: dict[str, Any]) -> ContinualConfig:
    """A strategy on a tier; exemplars weigh what a run of ours with this seed does."""
    extra: dict[str, Any] = {}
    if name.startswith("er-"):
        ours = [place for each in ("gppdm", "gppdm-plus") if (place := place_of(tier, each, seed)).exists()]
        if not ours:
            raise InputError(f"{name} needs the bytes of gppdm or gppdm-plus with seed {seed}: run that first")
        carried = json.loads(ours[0].read_text())["experiences"][-1]["bytes"]
        parts = ("prototypes", "projection", *(("generator",) if name == "er-total" else ()))
        extra = {"exemplar_bytes": sum(carried[part] for part in parts)}
    options = dict(TIERS[tier])
    if name.endswith("-plus"):
        options["images_per_class"] *= MORE
    return replace(strategy(name, **extra), **{**options, "seed": seed, **changes})


def classes_of(tier: str, seed: int) -> list[tuple[int, ...]]:
    """The classes of each experience: five of two, and in a repeating tier five more, otherwise paired."""
    first = split_classes(10, 5, order_seed=seed)
    return [*first, *split_classes(10, 5, order_seed=seed + 10_000)] if tier == "digits-repeating" else first


def learn(tier: str, name: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """One run, going on where it was cut; with a seed for tuning it is measured on validation images."""
    torch.set_num_threads(1)
    train, test = (LOADERS[tier](split) for split in ("train", "test"))
    stream = make_stream(train, test, classes_of(tier, seed), seed=seed, repeating=tier == "digits-repeating")
    if seed >= TUNED:
        stream = [replace(each, test=each.validation) for each in stream]
    out = WORK / place_of(tier, name, seed).stem if seed < TUNED else None
    config = config_of(tier, name.partition(", ")[0], seed, changes)
    learner = Learner(stream, config, out)
    found = finish(learner.run())
    every = sum(len(each.train) for each in stream) * math.prod(learner.shape)
    holds = {"holds_everything": config.exemplar_bytes >= every} if name.startswith("er-") else {}
    return {"tier": tier, "strategy": name, "seed": seed, "config": to_dict(config), **holds, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "look"])
    parser.add_argument("--tier", choices=list(TIERS), default="digits")
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(ORDER))
    parser.add_argument("--ablations", nargs="*", choices=list(ABLATIONS), help="of gppdm, in place of strategies")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--options", metavar="JSON", default="{}", help="look: other options, on seed 100")
    chosen = parser.parse_args()
    if chosen.what == "look":
        for name in chosen.strategies:
            found = learn(chosen.tier, name, TUNED, json.loads(chosen.options))
            print(name, chosen.options, {k: found[k] for k in ("final_accuracy", "mean_accuracy", "forgetting_max")})
        return
    every: dict[str, dict[str, Any]] = {name: {} for name in chosen.strategies}
    if chosen.ablations is not None:
        every = {f"gppdm, {name}": ABLATIONS[name] for name in chosen.ablations or ABLATIONS}
    for seed in chosen.seeds:
        for name, changes in every.items():
            if not place_of(chosen.tier, name, seed).exists():
                found = learn(chosen.tier, name, seed, changes)
                write_json(place_of(chosen.tier, name, seed), found)
                print(chosen.tier, name, seed, round(found["final_accuracy"], 3), flush=True)


if __name__ == "__main__":
    main()
