"""What the erasure benchmark asks a world for: which classes, in which words, and what a judge has to read in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logsnr.core.random import generator
from logsnr.data.emoji import held_out_pairs, list_concepts
from logsnr.evaluation.erasure import Judged, class_labels, judged
from logsnr.metrics.judge import Judge, judge_images

IMAGES = {"fashion": (200, 1000), "fashion-flow": (200, 1000), "emoji": (480, 1920)}
"""Images of a look, and of a test."""
CONCEPTS = (80, 160)
"""Concepts of `emoji` in a look and in a test, at least twice as many as are erased; each comes in three styles."""
LOOK_ALIKES = 5
"""Concepts of a target's own sub-group that are always asked for."""
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


@dataclass(frozen=True)
class Panel:
    """Prompts, the class of each (n,), and whether the classes are styles; they come in turns, ``classes`` a turn."""

    prompts: list[str]
    labels: Tensor
    classes: list[int]
    of_styles: bool = False

    def read(self, judge: Judge, images: Tensor) -> Judged:
        """What a judge says of the images of these prompts."""
        if not self.of_styles:
            return judged(judge, images, self.labels)
        features = judge_images(judge, images)[0]
        return Judged(features, judge.read_styles(features), self.labels)


def erased_classes(captions: Any, targets: Sequence[str]) -> tuple[list[int], list[str], bool]:
    """The classes that targets name, the names of all classes, and whether these are styles."""
    if set(targets) <= set(captions.styles):
        return [captions.styles.index(target) for target in targets], list(captions.styles), True
    return class_labels(targets, captions.names), [names[0] for names in captions.names], False


def panel(world: Any, targets: Sequence[str], *, held_out: bool) -> Panel:
    """What is asked for when these targets are erased, worded by templates that training saw, or not."""
    count = IMAGES[world.name][held_out]
    if world.name != "emoji":
        prompts, labels = world.source.ask(count, held_out=held_out)
        return Panel(prompts, labels, list(range(len(CLASSES))))
    gone, _, of_styles = erased_classes(world.captions, targets)
    concepts = _asked([] if of_styles else gone, CONCEPTS[held_out])
    num_styles, hidden = len(world.captions.styles), held_out_pairs()
    prompts, shown = [], []
    for place in range(len(concepts) * max(count // len(concepts), num_styles)):
        turn, concept = place // len(concepts), concepts[place % len(concepts)]
        style = place % num_styles if of_styles else (turn + int(hidden[concept, turn % num_styles])) % num_styles
        prompts.append(world.captions.prompt(concept, turn // num_styles, held_out=held_out, style=style))
        shown.append(style if of_styles else concept)
    return Panel(prompts, torch.tensor(shown), list(range(num_styles)) if of_styles else concepts, of_styles)


def _asked(gone: Sequence[int], least: int) -> list[int]:
    """Erased concepts, look-alikes of each from its sub-group, and others that all styles show, up to a number."""
    concepts, shown = list_concepts(), ~held_out_pairs().any(1)
    order = torch.randperm(len(concepts), generator=generator(0, "erasure", "asked")).tolist()
    order, near = [label for label in order if shown[label]], []
    for label in gone:
        kin = [other for other in order if concepts[other].subgroup == concepts[label].subgroup]
        near += [other for other in kin if other not in gone][:LOOK_ALIKES]
    return list(dict.fromkeys([*gone, *near, *order]))[: max(least, 2 * len(gone))]
