"""The demo's erasure: a shipped delta before and after with its neighbours, and an attack that undoes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from logsnr.attacks.config import AttackConfig
from logsnr.attacks.world import attack_world
from logsnr.cli.part import Part
from logsnr.core.errors import MissingError
from logsnr.evaluation.erasure import class_labels, erasure_figures, judged
from logsnr.evaluation.report import Figure, Section
from logsnr.models.delta import Delta
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.preview import image_grid
from logsnr.worlds.load import World, load

_STEPS, _IMAGES = 8, 8
_ATTACK = AttackConfig(num_images=12, steps=(0, 30), learning_rate=0.1, sampling_steps=_STEPS)
_GONE, _KEPT, _BACK = 0.8, 0.85, 0.5
"""What a part has to reach; an edit or an attack that stopped working falls far below."""


def erased(pipe: Pipeline, world: World, folder: Path) -> Part:
    """The same prompts and seeds before and after a shipped erasure, and the pipeline given back."""
    delta, names = Delta.from_pretrained(folder), [found[0] for found in world.captions.names]
    prompts, labels = world.source.ask(_IMAGES * len(names), held_out=True)
    base, before = fingerprint(network_of(pipe)), _draw(pipe, prompts)
    delta.apply(pipe)
    after = _draw(pipe, prompts)
    delta.revert(pipe)
    judge, gone = world.judge(second=True), class_labels(delta.record.targets, world.captions.names)
    found = erasure_figures(judged(judge, before, labels), judged(judge, after, labels), gone, names)
    values = {name: found[name] for name in ("esr1", "psr1", "relative_esr1", "relative_psr1")}
    summary = (
        f"{', '.join(delta.record.targets)}: {1 - found['esr1']:.0%} of its images still show it (before "
        f"{1 - found['before']['esr1']:.0%}); of all others {found['psr1']:.0%} show what was asked (before "
        f"{found['before']['psr1']:.0%})"
    )
    rows = torch.cat([images[: 2 * len(names)] for images in (before, after)])
    figure = Figure(image_grid(rows, columns=len(names)), f"{', '.join(names)}: two rows before, the same seeds after.")
    good = found["relative_esr1"] >= _GONE and found["relative_psr1"] >= _KEPT
    passed = good and fingerprint(network_of(pipe)) == base
    return Part("erase", Section("A concept erased, its neighbours kept", summary, [figure]), values, passed)


def attacked(pipe: Pipeline, world: World, folder: Path) -> Part:
    """An embedding learned from real images in place of the text: the edited network draws the concept again."""
    delta, edited, title = Delta.from_pretrained(folder), load(world.name), "An attack that succeeds"
    delta.merge(edited)
    target = class_labels(delta.record.targets, world.captions.names)[0]
    other = next(label for label in range(len(world.captions.names)) if label != target)
    try:
        found = attack_world(world, edited, pipe, target, other, _ATTACK)
    except MissingError as error:
        return Part("attack", Section(title, f"left out: {error}"), {})
    summary = (
        f"an embedding learned from {_ATTACK.num_references} real images brings {found.success_rate:.0%} of the images "
        f"back; on the original, with another class, it makes {found.control_rate:.0%} of them up. The erasure took "
        "away what words reach, not what the network can draw"
    )
    table = [("steps of learning", "images that show it"), *((f"{at:g}", f"{rate:.0%}") for at, rate in found.curve)]
    values = {"success_rate": found.success_rate, "control_rate": found.control_rate}
    passed = found.success_rate - found.control_rate >= _BACK
    return Part("attack", Section(title, summary, table=table), values, passed)


def _draw(pipe: Pipeline, prompts: Sequence[str]) -> Tensor:
    return sample(pipe, prompts, seeds=range(len(prompts)), config=SampleConfig(steps=_STEPS)).images
