"""The demo's few-step model: one call, two calls and the teacher's twenty on the same seeds, with their seconds."""

from __future__ import annotations

import torch

from logsnr.cli.part import Part
from logsnr.evaluation.report import Figure, Section
from logsnr.metrics.judge import judge_images
from logsnr.models.architectures import is_distilled
from logsnr.models.pipeline import Pipeline
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.preview import image_grid
from logsnr.worlds.load import World, load

_CALLS, _IMAGES, _SHOWN = 20, 60, 10
_GUIDANCE = 1.5
_SHARE = 0.9
"""Of the teacher's accuracy with twenty calls, what one call and two have to reach."""


def few_calls(pipe: Pipeline, world: World, model: str) -> Part:
    """A shipped model of few calls beside its teacher."""
    few = load(model)
    prompts, labels = world.source.ask(_IMAGES, held_out=True)
    judge, seeds = world.judge(second=True), range(_IMAGES)
    ways = {"one call": (few, 1), "two calls": (few, 2), f"{_CALLS} of the teacher": (pipe, _CALLS)}
    made, values = [], {}
    for name, (each, calls) in ways.items():
        own = each is few and not is_distilled(few)  # its guidance is in its weights
        config = SampleConfig(steps=calls, guidance_scale=1.0 if own else _GUIDANCE)
        found = sample(each, prompts, seeds=seeds, config=config)
        made.append(found.images[:_SHOWN])
        right = (judge_images(judge, found.images)[1].argmax(1) == labels).float().mean()
        values[name] = {"accuracy": float(right), "seconds": found.seconds, "evaluations": found.network_evaluations}
    rows = [("way", "shows what was asked", "evaluations an image", "milliseconds an image")]
    rows += [
        (name, f"{v['accuracy']:.0%}", f"{v['evaluations'] / _IMAGES:g}", f"{1e3 * v['seconds'] / _IMAGES:.1f}")
        for name, v in values.items()
    ]
    one, two, twenty = values.values()
    times = twenty["evaluations"] / two["evaluations"]
    summary = f"two calls show what was asked in {two['accuracy']:.0%} of images, the teacher's {_CALLS} in "
    summary += f"{twenty['accuracy']:.0%} and {times:.0f} times the evaluations"
    figure = Figure(image_grid(torch.cat(made), columns=_SHOWN, scale=2), f"From top: {', '.join(ways)}; same prompts.")
    passed = min(one["accuracy"], two["accuracy"]) >= _SHARE * twenty["accuracy"]
    return Part("consistency", Section("One call, two, and twenty", summary, [figure], rows), values, passed)
