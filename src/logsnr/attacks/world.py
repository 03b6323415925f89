"""An attack on an edited world: its prompts, its real images, and its second judge's word."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from logsnr.attacks.attack import Attacked, attack
from logsnr.attacks.attacker import Sought
from logsnr.attacks.config import AttackConfig
from logsnr.data.labelled import LabelledData
from logsnr.metrics.judge import Judge, judge_images
from logsnr.models.pipeline import Pipeline, encode_images
from logsnr.worlds.load import World

_TEMPLATES, _OTHERS = 4, 40


def attack_world(
    world: World, edited: Pipeline, original: Pipeline, target: int, unrelated: int, config: AttackConfig
) -> Attacked:
    """Seek the class ``target`` in the edited pipeline, and as the control ``unrelated`` in the original.

    Success is in both that the second judge sees the target.

    Raises:
        MissingError: the world's real images are not installed.
    """
    victim, control = sought(world, edited, target, config), sought(world, original, unrelated, config)
    return attack(victim, control, partial(shows, world.judge(second=True), target), config)


def sought(world: World, pipe: Pipeline, label: int, config: AttackConfig, data: LabelledData | None = None) -> Sought:
    """A class in a pipeline: its prompts in trained templates, those of others, and latents of real images.

    The images are the world's training images, or of other ``data``.
    """
    data, captions = data or world.source.measuring()[0], world.captions
    rows = (data.labels == label).nonzero()[: config.num_references, 0]
    prompts = [captions.prompt(label, template) for template in range(_TEMPLATES)]
    others = [other for other in range(len(captions.names)) if other != label][:_OTHERS]
    without = [captions.prompt(other, place % _TEMPLATES) for place, other in enumerate(others)]
    return Sought(pipe, prompts, encode_images(pipe, data.take(rows)["image"]), without)


def shows(judge: Judge, target: int, images: Tensor) -> Tensor:
    """Whether the judge sees the concept in each image."""
    return torch.eq(judge_images(judge, images)[1].argmax(1), target)
