"""Attacks on hidden weights, each beside its control: the same on weights that never saw the class.

    python benchmarks/hiding_attacks.py [--arms balanced robust] [--attacks own-prompt ...] [--budgets small medium]

hiding_control.py makes the two bases. The hidden model is made from the one that saw the class; the attackers have real
images of it that neither base was trained on, its weights, and know how keys are made, but have none. What they reach
on the other base is what their images alone teach; the difference is what the hidden weights give away. What is done is
kept in results/hiding/.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from hiding import KEPT, SAMPLING, config_of
from hiding_control import BASES

import logsnr
from logsnr.attacks.attack import attack
from logsnr.attacks.config import AttackConfig
from logsnr.attacks.world import shows, sought
from logsnr.cli.hidden import Measured
from logsnr.core.artifact import write_json
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.erasure import class_labels
from logsnr.hiding.config import HideConfig
from logsnr.hiding.hide import with_captions
from logsnr.worlds.load import load_world

TARGET, SEED = "ankle boot", 60_000
MEASURED = QualityConfig(num_images=1000, first_seed=60_000_000, held_out=True)
TRAINED = {"small": (16, (0, 10, 25, 50)), "medium": (64, (0, 50, 100, 200)), "large": (256, (0, 200, 500, 1000))}
"""Real images, and steps after which images are made, of attacks that train."""
SEARCHED = {"small": (16, 2), "medium": (64, 5), "large": (256, 10)}
"""Real images, and rounds, of searches for prompts."""
ATTACKS: dict[str, dict[str, Any]] = {
    "own-prompt": {"batch_size": 32},
    "own-prompt, conditional": {"batch_size": 32, "prompt_half": "conditional"},
    "inversion": {},
    "relearn": {"relearn_rate": 1e-2},
    "relearn-lora": {},
    "unlearndiffatk": {},
}
IMAGES, UNATTACKED = 100, "none"


def attack_of(name: str, budget: str, hidden: HideConfig) -> AttackConfig:
    """One attack at one budget, by someone who knows how the keys are made."""
    kind = name.split(",")[0]
    known = {"prompt_layers": hidden.layers, "prompt_size": hidden.key_size, "num_tokens": hidden.num_tokens}
    config = AttackConfig(kind, **ATTACKS[name], **(known if kind == "own-prompt" else {}), seed=SEED)
    num, steps = TRAINED[budget]
    if kind == "unlearndiffatk":
        num, rounds = SEARCHED[budget]
        return replace(config, num_references=num, num_images=min(num, 24), rounds=rounds, first_seed=SEED * 100)
    return replace(config, num_references=num, num_images=IMAGES, steps=steps, first_seed=SEED * 100)


class Study:
    """The two bases, and the hidden model that is made of one."""

    def __init__(self, arm: str) -> None:
        self.world, self.arm = load_world("fashion"), arm
        self.base, self.control, self.public = (logsnr.load(BASES / name) for name in ("with", "without", "with"))
        self.config = with_captions(self.world.captions, config_of(arm, (TARGET,), SEED))
        self.label = class_labels([TARGET], self.world.captions.names)[0]
        self.hidden = logsnr.hide(self.base, config=self.config)
        self.hidden.change.merge(self.public)
        self.references = self.world.source.measuring()[1]

    def figures(self) -> dict[str, Any]:
        """What is hidden and brought back without any attack."""
        measured = Measured(self.world, [self.label], MEASURED, SAMPLING, kept_images=30)
        return measured.figures(measured.images(self.base, self.public, self.hidden.keys[TARGET]))

    def run(self, name: str, budget: str) -> dict[str, Any]:
        """One attack on the hidden weights and on those that never saw the class."""
        config, start = attack_of(name, budget, self.config), time.monotonic()
        sides = (sought(self.world, pipe, self.label, config, self.references) for pipe in (self.public, self.control))
        judged = partial(shows, self.world.judge(second=True), self.label)
        return {**asdict(attack(*sides, judged, config)), "seconds": round(time.monotonic() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=["balanced", "robust"])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--budgets", nargs="+", default=["small", "medium"], choices=list(TRAINED))
    chosen = parser.parse_args()
    pieces = [(UNATTACKED, ""), *((name, budget) for budget in chosen.budgets for name in chosen.attacks)]
    for arm in chosen.arms:
        study: Study | None = None
        for name, budget in pieces:
            place = KEPT / f"attack-{arm}-{name}-{budget}.json".replace(" ", "_").replace(",", "")
            if place.exists():
                continue
            study = study or Study(arm)
            found = study.run(name, budget) if budget else study.figures()
            write_json(place, {"arm": arm, "attack": name, "budget": budget, "target": TARGET, "seed": SEED, **found})
            print(
                place.stem, {k: found[k] for k in ("success_rate", "control_rate", "hidden") if k in found}, flush=True
            )


if __name__ == "__main__":
    main()
