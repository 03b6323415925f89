"""The card of a world: data, licence, how it was trained, and the figures that its benchmark measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logsnr.core.artifact import write_file, write_json
from logsnr.core.config import read_json
from logsnr.train.trackers import read_log
from logsnr.worlds.config import RECIPES

_TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [diffusers, stable-diffusion, {tag}]
---

# {name}

A small Stable Diffusion pipeline trained from scratch on real images: AutoencoderKL (32x32 {pixels} to 4x8x8 latents),
CLIP text encoder over a vocabulary of its own, UNet2DConditionModel, and two judges beside it (`judge` and
`judge_second`). It is a small world for measuring methods; it does not replicate the table of any paper.

{about}
- Weights: Apache-2.0. UNet, autoencoder and judges in fp16, text encoder in fp32.
- Made by: `logsnr train {name}`; measured by: `benchmarks/{script}.py`.

## Training

| stage | steps | images | seconds | legs |
|---|---|---|---|---|
{stages}

A new leg of the denoiser starts from the weights of the last with a new optimiser and a warm-up.

## Figures

By the second judge, on prompts from the held-out templates, 20 evaluations, {images} `benchmarks/results/{name}.json`.

| figure | value |
|---|---|
{figures}
"""


@dataclass(frozen=True)
class _Words:
    """What a card says of a data set: its tag and kind of pixels, data and captions, benchmark and protocol."""

    tag: str
    pixels: str
    about: str
    script: str
    images: str


_WORDS = {
    "fashion": _Words(
        "fashion-mnist",
        "grey",
        """- Data: Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT licence, 60,000 training images padded to 32x32.
- Captions: 15 templates with 3 more held out, a formal name and two synonyms a class, factor words from the pixels
  (dark, bright, small, large), 10 % empty.""",
        "fashion",
        "10,000 images a setting, Frechet\ndistances to the 60,000 training images. Goals and protocol:",
    ),
    "emoji": _Words(
        "emoji",
        "colour",
        """- Data: 1,053 concepts of Unicode 15.1 in three open styles; shifted, scaled, flipped where harmless, on
  white or pastel. The drawings are not part of this model. Their licences and notices (`NOTICE` has them in full):
  - Twemoji: graphics copyright Twitter, Inc and other contributors, CC BY 4.0
    (https://creativecommons.org/licenses/by/4.0/); trimmed, resized and augmented, and learned from.
  - Noto Emoji: copyright Google LLC; images Apache-2.0, the font Noto Color Emoji OFL-1.1.
  - Fluent Emoji: copyright (c) Microsoft Corporation, MIT licence.
- Held out: 158 of 3,159 pairs of concept and style, which the denoiser never saw; judges and autoencoder saw all.
- Captions: 17 templates with 7 more held out, with the style or without, a formal name and synonyms of a concept
  (Unicode CLDR and emoji-data), 10 % empty.""",
        "worlds",
        "2,000 images\nof trained pairs. Goals and protocol:",
    ),
}


def write_training_card(folder: Path, name: str, stages: dict[str, Any]) -> None:
    """Write what the recipe knows: steps, images and seconds of every stage; figures come later."""
    write_json(folder / "training.json", {"name": name, **stages})
    _render(folder)


def write_card(folder: Path, figures: dict[str, float]) -> None:
    """Write measured figures into ``card.json`` and the card that people read."""
    write_json(folder / "card.json", figures)
    _render(folder)


def stage_record(work: Path, batch_size: int, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """Steps, images and seconds of a finished stage from its log, added to those of the legs before it."""
    entries = read_log(work / "log.jsonl")
    steps, seconds = (entries[-1]["step"], entries[-1]["seconds"]) if entries else (0, 0.0)
    past = before or {"steps": 0, "images": 0, "seconds": 0, "legs": 0}
    return {
        "steps": past["steps"] + steps,
        "images": past["images"] + steps * batch_size,
        "seconds": round(past["seconds"] + seconds),
        "legs": past["legs"] + 1,
    }


def _render(folder: Path) -> None:
    stages = read_json(folder / "training.json")
    name = stages.pop("name")
    card = folder / "card.json"
    figures = read_json(card) if card.exists() else {}
    rows = [f"| {n} | {s['steps']:,} | {s['images']:,} | {s['seconds']:,} | {s['legs']} |" for n, s in stages.items()]
    measured = [f"| {figure.replace('_', ' ')} | {value:.4f} |" for figure, value in figures.items()]
    table = "\n".join(measured or ["| not measured yet | |"])
    words = asdict(_WORDS[RECIPES[name].data])
    write_file(folder / "README.md", _TEXT.format(name=name, stages="\n".join(rows), figures=table, **words))
