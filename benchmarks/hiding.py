"""Hiding on `fashion` and `emoji`: what is hidden, what a key brings back, what others keep, and what wrong keys open.

    python benchmarks/hiding.py [--world fashion] [--arms balanced ...] [--cells boot ...] [--seeds 0 1 2] [--tune]

A cell is one hidden class, or several under a key each. Figures are the second judge's on held-out templates and fresh
seeds, of 500 images of the hidden class and 100 of each other; look-alikes are among those that are kept. Beside them
stand images of trained templates without a key, of near keys, and of each other key. On `emoji` a concept has 300
images, and 120 others, the twenty nearest in text among them, have one of each style. ``--tune`` takes other classes
and seeds, trained templates and the first judge, and keeps nothing. What is done is kept in results/hiding/, so that
the whole can be made in pieces and by several processes; hiding_report.py puts it together.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hiding_measures import Ask, worst_kind
from hiding_panels import CELLS, TUNED, asked
from record import RESULTS

import logsnr
from logsnr.cli.hidden import Measured
from logsnr.core.artifact import write_json
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.erasure import class_labels
from logsnr.hiding.config import HideConfig, HideWeights, hide_preset
from logsnr.hiding.hide import with_captions
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.train.config import FitConfig
from logsnr.worlds.load import World, load_world

KEPT = RESULTS / "hiding"
ARMS: dict[str, dict[str, Any]] = {
    "balanced": {},
    "mid": {"layers": "mid"},
    "midout": {"layers": "midout"},
    "key steps": {"prompt_steps": 2},
    "small key": {"key_size": 1.0},
    "low rate": {"learning_rate": 4e-4},
    "clean data": {"loss_weighting": "x0"},
    "conditional half": {"guidance_half": "conditional"},
    "concept start": {"start": "concept"},
    "prompt+lora": {"change_rank": 4},
    "less recovery": {"weights": HideWeights(recover=1.0)},
    "softer on wrong keys": {"weights": HideWeights(wrong_key=0.4)},
    "shorter": {"run": FitConfig(steps=900, batch_size=8, warmup=0, decay="cosine", clip=0.5)},
    "1 token": {"num_tokens": 1},
    "30 tokens": {"num_tokens": 30},
}
"""Changes of the preset balanced; the presets robust and paper are arms too."""
TERMS = ("keep", "keep_with_key", "wrong_key")
"""Each of these is left out in an arm of its own."""
PRESETS = ("robust", "paper")
SAMPLING = SampleConfig(steps=10, guidance_scale=2.0)
SAMPLINGS = {"fashion": SAMPLING, "emoji": SampleConfig(steps=10, guidance_scale=3.0)}
TEST = QualityConfig(num_images=5000, first_seed=70_000_000, held_out=True)
LOOK = QualityConfig(num_images=1000, first_seed=7_000_000, held_out=False)
OTHERS = {"test": 100, "look": 30}
"""Images of each class that is kept; of a hidden class there are a tenth of a test's or a look's."""
PLAIN_SEED, NEAR = 75_000_000, 200
EMOJI = {"test": 300, "look": 90}
"""Images of a hidden concept of `emoji`."""


def config_of(arm: str, targets: tuple[str, ...], seed: int) -> HideConfig:
    """What an arm trains."""
    preset = hide_preset(arm if arm in PRESETS else "balanced", *targets)
    if arm.startswith("no ") and (term := arm.removeprefix("no ").replace(" ", "_")) in TERMS:
        preset = replace(preset, weights=replace(preset.weights, **{term: 0.0}))
    preset = replace(preset, **ARMS.get(arm, {}))
    return replace(preset, run=replace(preset.run, seed=seed))


def run(arm: str, targets: tuple[str, ...], seed: int, *, look: bool, name: str = "fashion") -> dict[str, Any]:
    """Hide, and measure every target's key; the public model lacks all of them."""
    start, world, pipe, public = time.monotonic(), load_world(name), logsnr.load(name), logsnr.load(name)
    config = with_captions(world.captions, config_of(arm, targets, seed))
    hidden = logsnr.hide(pipe, config=config)
    seconds = time.monotonic() - start
    hidden.change.merge(public)
    figures = {target: _measured(world, pipe, public, target, hidden.keys, look=look) for target in hidden.keys}
    return {
        "world": name,
        "arm": arm,
        "targets": list(targets),
        "seed": seed,
        "hide_seconds": round(seconds, 1),
        "evaluation_equivalents": hidden.cost.evaluation_equivalents,
        "figures": figures,
        "seconds": round(time.monotonic() - start, 1),
    }


def _measured(
    world: World, pipe: Any, public: Any, target: str, keys: Mapping[str, Prompt], *, look: bool
) -> dict[str, Any]:
    """One target's figures, in a model that hides those of all keys."""
    others = {name: key for name, key in keys.items() if name != target}
    (gone,), aside = (class_labels(names, world.captions.names) for names in ([target], list(others)))
    quality, what = (LOOK, "look") if look else (TEST, "test")
    prompts = asked(world, pipe, gone, EMOJI[what], held_out=not look)
    options = {"second": not look, "aside": tuple(aside), "kept_images": OTHERS[what], "prompts": prompts}
    sampling = SAMPLINGS[world.name]
    measured = Measured(world, [gone], quality, sampling, **options)
    figures = measured.figures(measured.images(pipe, public, keys[target], list(others.values())))
    if look:
        return figures
    count = EMOJI[what] if world.name == "emoji" else quality.num_images // len(world.captions.names)
    ask = Ask(world, public, gone, sampling, PLAIN_SEED)
    unlock = {name: ask.opened(NEAR, key, held_out=True) for name, key in others.items()}
    return {**figures, "plain": ask.plain(count), "near": ask.near(keys[target], NEAR), "unlock": unlock}


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """What a line of progress says of a row: the targets' means, and the worst wrong key."""
    found = list(row["figures"].values())
    names = ("hidden", "recovered", "mse_ratio", "preserved", "preserved_mse_ratio", "preserved_with_key")
    means = {name: round(sum(f[name] for f in found) / len(found), 3) for name in names}
    worst = max((worst_kind(f)[::-1] for f in found), default=None)
    return {**means, "worst_wrong_key": worst, "seconds": row["hide_seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [*ARMS, *PRESETS, *(f"no {term.replace('_', ' ')}" for term in TERMS)]
    parser.add_argument("--arms", nargs="+", default=["balanced"], choices=known)
    parser.add_argument("--world", default="fashion", choices=list(CELLS))
    parser.add_argument("--cells", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true")
    chosen = parser.parse_args()
    cells = (TUNED if chosen.tune else CELLS)[chosen.world]
    if wrong := set(chosen.cells or ()) - cells.keys():
        parser.error(f"{min(wrong)} is no cell here: use {', '.join(cells)}")
    for seed in chosen.seeds:
        for cell in chosen.cells or cells:
            for arm in chosen.arms:
                place = KEPT / f"{chosen.world}-{cell}-{arm}-{seed}.json".replace(" ", "_")
                if not chosen.tune and place.exists():
                    continue
                row = run(
                    arm, cells[cell], (90_000 if chosen.tune else 40_000) + seed, look=chosen.tune, name=chosen.world
                )
                print(cell, arm, seed, json.dumps(shown(row)), flush=True)
                if not chosen.tune:
                    write_json(place, row)


if __name__ == "__main__":
    main()
