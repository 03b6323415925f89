"""What the hiding benchmark hides and asks for: classes of `fashion`, concepts of `emoji`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.data.emoji import held_out_pairs
from logsnr.erasure.candidates import text_distances
from logsnr.worlds.load import World

THREE = ("ankle boot", "shirt", "trouser")
CELLS: dict[str, dict[str, tuple[str, ...]]] = {
    "fashion": {"boot": ("ankle boot",), "shirt": ("shirt",), "trouser": ("trouser",), "all three": THREE},
    "emoji": {"rocket": ("a rocket",), "face": ("a grinning face",), "red apple": ("a red apple",)},
}
"""On `emoji` a concept apart, one with look-alikes, and one that shares words with a neighbour."""
TUNED: dict[str, dict[str, tuple[str, ...]]] = {
    "fashion": {"sandal": ("sandal",), "coat": ("coat",), "both": ("sandal", "coat")},
    "emoji": {"guitar": ("a guitar",)},
}
NEAREST, RANDOM = 20, 100
"""Concepts of `emoji` that are kept and asked for: those nearest in text, and others."""


def asked(world: World, pipe: Any, gone: int, images: int, *, held_out: bool) -> tuple[list[str], Tensor] | None:
    """Prompts and labels (n,) of `emoji`: so many of what is hidden, and each style once of what is kept.

    Pairs of concept and style that training did not show are left out. None for a world whose classes are few.
    """
    if world.name != "emoji":
        return None
    names, shown = world.captions.names, ~held_out_pairs()
    distances = text_distances(pipe, [names[gone][0]], [each[0] for each in names])[0]
    near = [label for label in distances.argsort().tolist() if label != gone][:NEAREST]
    order = torch.randperm(len(names), generator=generator(0, "hiding", "kept")).tolist()
    others = [label for label in order if label != gone and label not in near][:RANDOM]
    styles = range(len(world.captions.styles))
    pairs = [(gone, turn % len(styles), turn // len(styles)) for turn in range(images)]
    pairs += [(label, style, 0) for label in (*near, *others) for style in styles if shown[label, style]]
    prompts = [world.captions.prompt(label, turn, held_out=held_out, style=style) for label, style, turn in pairs]
    return prompts, torch.tensor([label for label, _, _ in pairs])
