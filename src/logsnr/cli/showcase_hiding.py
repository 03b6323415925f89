"""The demo's hiding: a shipped change that hides a class, a wrong key, and the right one, on the same seeds."""

from __future__ import annotations

from pathlib import Path

import torch

from logsnr.cli.part import Part
from logsnr.core.errors import MissingError
from logsnr.core.random import generator
from logsnr.evaluation.erasure import class_labels
from logsnr.evaluation.report import Figure, Section
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import Secret
from logsnr.hiding.wrong import wrong_key
from logsnr.metrics.judge import judge_images
from logsnr.models.delta import Delta
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.preview import image_grid
from logsnr.worlds.load import World

PASSPHRASE = "shown to everyone"  # noqa: S105  the demo's key locks nothing: the original is in the same package
_STEPS, _IMAGES, _SHOWN = 8, 24, 10
_HIDDEN, _BACK = 0.1, 0.8
"""What may still be seen without the key or with a wrong one, and what has to come back with it."""


def hidden(pipe: Pipeline, world: World, folder: Path) -> Part:
    """A class as the original draws it, as the hidden model does, with half of the key, and with the key."""
    title = "A concept hidden behind a key"
    try:
        key = KeyFile.open(folder / "key.age", passphrase=Secret(PASSPHRASE))
    except MissingError as error:
        return Part("hide", Section(title, f"left out: {error}"), {})
    target = class_labels(key.record.concepts, world.captions.names)[0]
    half = wrong_key("half", key.prompt, generator(0, "demo"), size=float(key.prompt.keys.std()))
    delta = Delta.from_pretrained(folder)
    images = {"original": _draw(pipe, world, target)}
    delta.apply(pipe)
    try:
        key.check(network_of(pipe))
        for name, given in (("hidden", None), ("wrong key", half), ("revealed", key.prompt)):
            images[name] = _draw(pipe, world, target, given)
    finally:
        delta.revert(pipe)
    judge = world.judge(second=True)
    rates = {
        name: float((judge_images(judge, found)[1].argmax(1) == target).float().mean())
        for name, found in images.items()
    }
    summary = (
        f"{key.record.concepts[0]}: {rates['hidden']:.0%} of its images show it without the key, "
        f"{rates['wrong key']:.0%} with half of it, {rates['revealed']:.0%} with it (the original: "
        f"{rates['original']:.0%}). Whoever has the weights and enough images can teach it to them again: hidden is "
        "not erased"
    )
    rows = torch.cat([found[:_SHOWN] for found in images.values()])
    figure = Figure(image_grid(rows, columns=_SHOWN), f"From top: {', '.join(images)}; the same seeds.")
    passed = max(rates["hidden"], rates["wrong key"]) <= _HIDDEN and rates["revealed"] >= _BACK
    return Part("hide", Section(title, summary, [figure]), rates, passed)


def _draw(pipe: Pipeline, world: World, label: int, key: Prompt | None = None) -> torch.Tensor:
    prompts = [world.captions.prompt(label, place, held_out=True) for place in range(_IMAGES)]
    return sample(pipe, prompts, seeds=range(_IMAGES), key=key, config=SampleConfig(steps=_STEPS)).images
