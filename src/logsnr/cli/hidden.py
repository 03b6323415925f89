"""The hiding protocol of ``logsnr evaluate``: a public folder against the model that it was made from, with its key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.evaluation.erasure import class_labels, judged
from logsnr.evaluation.erasure_report import Images
from logsnr.evaluation.hiding import hiding_figures
from logsnr.evaluation.quality import describe
from logsnr.hiding.publish import bring_back
from logsnr.hiding.wrong import UNSEEN, WRONG, wrong_key
from logsnr.models.prompted import Prompt
from logsnr.solvers.sample import sample
from logsnr.worlds.load import load, load_world

if TYPE_CHECKING:
    from logsnr.cli.evaluate import Evaluate
    from logsnr.hiding.keyfile import KeyFile
    from logsnr.models.pipeline import Pipeline

_DRAWS = 20
"""Random keys that are tried; of other wrong kinds there is one."""


def measure_hiding(verb: Evaluate) -> dict[str, Any]:
    """All figures of a hidden model, by the second judge of the world that it was made from."""
    if verb.base is None or verb.key is None:
        raise InputError("the protocol hiding needs the model before, and a key: say --base MODEL and --key FILE")
    key: KeyFile = verb.open(verb.key)
    world, quality = load_world(verb.base), verb.quality
    hidden = class_labels(key.record.concepts, world.captions.names)
    prompts, labels = world.source.ask(quality.num_images, held_out=quality.held_out)
    seeds, judge = range(quality.first_seed, quality.first_seed + len(prompts)), world.judge(second=True)

    def images(pipe: Pipeline, rows: Sequence[int], keys: Any = None) -> Images:
        asked, chosen = [prompts[row] for row in rows], [seeds[row] for row in rows]
        made = sample(pipe, asked, seeds=chosen, key=keys, config=verb.sampling, batch_size=quality.batch_size)
        return Images(made.images, judged(judge, made.images, labels[list(rows)]))

    every, original, public = range(len(prompts)), load(verb.base), load(verb.model)
    before, plain = images(original, every), images(public, every)
    own = [row for row in every if int(labels[row]) in hidden]
    wrong = {kind: images(public, own, _wrong(kind, key.prompt, len(own))) for kind in (*WRONG, *UNSEEN)}
    wrong.pop("other")  # a single key knows no other
    opened = bring_back(public, key)
    names = [found[0] for found in world.captions.names]
    values = hiding_figures(before, plain, images(public, every, opened), wrong, hidden, names)
    more = {"model": verb.model, "base": verb.base, "kind": key.record.kind, "sampling": asdict(verb.sampling)}
    values["protocol"] = {**describe(quality, **more), "name": "hiding", "judge": "second"}
    return values


def _wrong(kind: str, right: Prompt, rows: int) -> list[Prompt]:
    """A wrong key for each row: of noise several in turn, else the same."""
    draws, size = generator(0, "wrong key", kind), float(torch.stack([right.keys, right.values]).std())
    found = [wrong_key(kind, right, draws, size=size) for _ in range(_DRAWS if kind == "random" else 1)]
    return [found[row % len(found)] for row in range(rows)]


def hiding_lines(values: dict[str, Any]) -> list[str]:
    """The same for a person."""
    protocol = values["protocol"]
    return [
        f"hidden without the key: {values['hidden']:.4f} (at most {values['leakage_upper95']:.4f} leaks, 95 %)",
        f"recovered with it: {_share(values['recovered'])}; same seeds {values['mse_ratio']:.3f} of two seeds apart; "
        f"the judge agrees on {values['label_agreement']:.4f}",
        f"others, relative: {_share(values['preserved'])} without the key (worst {_share(values['preserved_worst'])}, "
        f"{values['preserved_mse_ratio']:.3f} apart), {_share(values['preserved_with_key'])} with it",
        *(f"  {kind} key: {found['share']:.4f} of {found['images']}" for kind, found in values["wrong_key"].items()),
        f"{protocol['num_images']} images from seed {protocol['first_seed']}, "
        f"{protocol['sampling']['steps']} evaluations each, {values['seconds']} s",
    ]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
