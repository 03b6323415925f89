"""The demo's continual learning: a shipped run's accuracies and replays, and the exact projection at work here.

The run is of ``benchmarks/continual.py``, and nothing of it is trained here. What is done here is a few steps on the
keys and values of the world's own UNet, with and without the projection.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from logsnr.cli.part import Part
from logsnr.core.config import read_json
from logsnr.core.random import generator
from logsnr.evaluation.report import Figure, Section
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import Pipeline, encode_prompts, network_of
from logsnr.train.projection import GradientProjectionMemory
from logsnr.worlds.load import World

SHIPPED = Path(__file__).parent.parent / "continual" / "shipped"
_STEPS, _RATE, _CLASSES = 20, 1e-3, 5
_KEPT, _MOVED = 1e-5, 1e-3
"""How far keys and values may move with the projection, and how far they move at least without it."""


def kept_on(pipe: Pipeline, world: World, folder: Path = SHIPPED) -> Part:
    """What was learned class after class, and what the projection keeps."""
    found = read_json(folder / "run.json")
    drifts = {name: drift(pipe, world, name == "with the projection") for name in ("without", "with the projection")}
    final, fell = found["final_accuracy"], found["forgetting_max"]
    summary = (
        f"{found['strategy']} on {found['benchmark']}, {len(found['accuracy_matrix'])} experiences of two classes: "
        f"{final:.0%} of all images are read right in the end, forgetting {fell:.0%} (one seed). Here, {_STEPS} steps "
        f"on new prompts move what keys and values say of old ones by {drifts['without']:.0e}, with the projection by "
        f"{drifts['with the projection']:.0e}"
    )
    rows = [("after experience", "its classes", "accuracy on each so far, among all classes seen")]
    rows += [
        (str(place + 1), ", ".join(map(str, classes)), "  ".join(f"{value:.2f}" for value in accuracies))
        for place, (classes, accuracies) in enumerate(zip(found["classes"], found["accuracy_matrix"], strict=True))
    ]
    picture = Image.open(folder / "replays.png")
    figure = Figure(
        picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.NEAREST),
        "From top: real images, then what the generator draws of every class after each experience.",
    )
    values = {"final_accuracy": final, "forgetting_max": fell, "drift": drifts}
    passed = drifts["with the projection"] <= _KEPT and drifts["without"] >= _MOVED
    return Part("continual", Section("Class after class", summary, [figure], rows), values, passed)


def drift(pipe: Pipeline, world: World, project: bool) -> float:
    """How far keys and values of a copy of the network move on old prompts while they learn new ones, as a share."""
    network = copy.deepcopy(network_of(pipe))
    weights = dict(select_parameters(network, "xattn-kv"))
    old, new = (_tokens(pipe, world, labels) for labels in (range(_CLASSES), range(_CLASSES, 2 * _CLASSES)))
    before = _said(weights, old)
    memory = GradientProjectionMemory(apply="update" if project else "none")
    memory.remember(old, weights)
    stepper = torch.optim.AdamW(weights.values(), lr=_RATE)
    memory.attach(network, stepper)
    draws = generator(0, "continual demo")
    aims = [torch.randn(said.shape, generator=draws) for said in _said(weights, new)]
    for _ in range(_STEPS):
        stepper.zero_grad()
        torch.stack([(s - a).square().mean() for s, a in zip(_said(weights, new), aims, strict=True)]).sum().backward()
        stepper.step()
    moved = [(now - was).norm() / was.norm() for now, was in zip(_said(weights, old), before, strict=True)]
    return float(torch.stack(moved).detach().max())


def _tokens(pipe: Pipeline, world: World, labels: range) -> Tensor:
    prompts = [world.captions.prompt(label) for label in labels]
    return encode_prompts(pipe, prompts, guided=False).values["encoder_hidden_states"].flatten(0, 1)


def _said(weights: Mapping[str, nn.Parameter], tokens: Tensor) -> list[Tensor]:
    """What every layer's keys and values say of text."""
    return [tokens @ weight.T for weight in weights.values()]
