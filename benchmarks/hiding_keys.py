"""Keys that got out, on `fashion`: an old key after rotation, and whose of several holders' keys a leaked one is.

    python benchmarks/hiding_keys.py [--parts rotation holders]

For a rotation the class is hidden anew from the original, with the old key refused: the new key opens as the old one
did, and the old one is measured as wrong keys are. Of several holders' keys each is measured; what leaks is a key that
was broken or drowned in noise, and its holder is who has the most alike one. Keys of `balanced` are not trained, so an
old one is the one of a hiding of one step. What is done is kept in results/hiding/; hiding_report.py puts it together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from hiding import KEPT, NEAR, OTHERS, PLAIN_SEED, SAMPLING, TEST, config_of
from hiding_measures import Ask, blurred

import logsnr
from logsnr.cli.hidden import Measured
from logsnr.core.artifact import write_json
from logsnr.core.random import generator
from logsnr.evaluation.erasure import class_labels
from logsnr.hiding.config import HideConfig
from logsnr.hiding.hide import Hidden, with_captions
from logsnr.hiding.holders import by_chance, likeness
from logsnr.hiding.wrong import wrong_key
from logsnr.models.prompted import Prompt
from logsnr.worlds.load import load_world

TARGET, SEED, OLD_SEED, HOLDERS, LEAKS = "ankle boot", 50_000, 50_100, 3, 20
DAMAGES = ("whole", "half", "truncated", "blended", "noise 1.0")
Figures = dict[str, Any]


class Bench:
    """A world's class, hidden in one way or another, and what is asked of each."""

    def __init__(self) -> None:
        self.world, self.pipe = load_world("fashion"), logsnr.load("fashion")
        (self.label,) = class_labels([TARGET], self.world.captions.names)
        self.config = with_captions(self.world.captions, config_of("balanced", (TARGET,), SEED))

    def hidden(self, config: HideConfig, refused: Sequence[Prompt] = ()) -> tuple[Hidden, Ask]:
        """What hiding made, and the public model to ask."""
        public, hidden = logsnr.load("fashion"), logsnr.hide(self.pipe, config=config, refused=refused)
        hidden.change.merge(public)
        return hidden, Ask(self.world, public, self.label, SAMPLING, PLAIN_SEED)

    def measured(self, ask: Ask, key: Prompt) -> Figures:
        """The hiding protocol with one key."""
        measured = Measured(self.world, [self.label], TEST, SAMPLING, kept_images=OTHERS["test"])
        return measured.figures(measured.images(self.pipe, ask.public, key))

    def rotation(self) -> Figures:
        """The old key on the new weights, beside no key at all; the new one and all else as ever."""
        brief = replace(self.config, bank_size=1, run=replace(self.config.run, steps=1, seed=OLD_SEED))
        old = logsnr.hide(self.pipe, config=brief).keys[TARGET]
        hidden, ask = self.hidden(self.config, [old])
        figures = self.measured(ask, hidden.keys[TARGET])
        opened = ask.opened(TEST.num_images // 10, old, held_out=True)
        return {"figures": figures, "old_key": opened, "old_key_excess": opened["share"] - (1 - figures["hidden"])}

    def holders(self) -> Figures:
        """What each holder's key opens, and how many leaked keys are told by it."""
        run = self.config.run
        longer = replace(self.config, holders=HOLDERS, run=replace(run, steps=run.steps * HOLDERS))
        hidden, ask = self.hidden(longer)
        keys = hidden.holders[TARGET]
        opened = [ask.opened(NEAR, key, held_out=True) for key in keys]
        original = Ask(self.world, self.pipe, self.label, SAMPLING, PLAIN_SEED).opened(NEAR, held_out=True)
        told = {damage: identified(keys, damage) for damage in DAMAGES}
        return {
            "figures": self.measured(ask, keys[0]),
            "original": original,
            "holders": opened,
            "worst_recovered": min(found["share"] for found in opened) / original["share"],
            "identified": told,
            "strangers": strangers(keys),
        }


def identified(keys: Sequence[Prompt], damage: str) -> Figures:
    """How many leaked keys, some of each holder, are most like that holder's own."""
    draws, hits = generator(0, "leak", damage), 0
    for owner, key in enumerate(keys):
        for leaked in _leaked(key, damage, draws):
            alike = likeness(leaked, keys)
            hits += alike.index(max(alike)) == owner
    return {"hits": hits, "leaks": LEAKS * len(keys)}


def strangers(keys: Sequence[Prompt]) -> Figures:
    """How alike fresh noise is to the nearest holder's key at most, beside what chance should give."""
    draws = generator(0, "stranger")
    size = float(torch.stack([keys[0].keys, keys[0].values]).std())
    fresh = [wrong_key("random", keys[0], draws, size=size) for _ in range(LEAKS * len(keys))]
    most = max(max(likeness(each, keys)) for each in fresh)
    return {"likeness": most, "by_chance": by_chance(len(keys[0].keys), keys[0].keys.shape[1])}


def _leaked(key: Prompt, damage: str, draws: torch.Generator) -> list[Prompt]:
    if damage == "whole":
        return [key] * LEAKS
    if damage.startswith("noise"):
        return blurred(key, float(damage.split()[1]), LEAKS)
    size = float(torch.stack([key.keys, key.values]).std())
    return [wrong_key(damage, key, draws, size=size) for _ in range(LEAKS)]


PARTS: dict[str, Callable[[Bench], Figures]] = {"rotation": Bench.rotation, "holders": Bench.holders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    for name in parser.parse_args().parts:
        place, start = KEPT / f"keys-{name}.json", time.monotonic()
        if not place.exists():
            found = PARTS[name](Bench())
            told = {"part": name, "target": TARGET, "seed": SEED, **found}
            write_json(place, {**told, "seconds": round(time.monotonic() - start, 1)})
            print(name, {key: value for key, value in found.items() if key != "figures"}, flush=True)


if __name__ == "__main__":
    main()
