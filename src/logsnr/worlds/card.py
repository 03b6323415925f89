"""The card of a world: data, licence, how it was trained, and the figures that its benchmark measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logsnr.core.artifact import write_file, write_json
from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError
from logsnr.train.trackers import read_log
from logsnr.worlds.config import FEW_STEP, RECIPES, DenoiserConfig, Recipe
from logsnr.worlds.data import SOURCES
from logsnr.worlds.flow_config import FlowDenoiserConfig

_TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [diffusers, {kind.tag}, {words.tag}]
---

# {name}

{parts}

{words.about}
- Weights: Apache-2.0. {kind.halved}, autoencoder and judges in fp16, {kind.whole} in fp32.
- Made by: `logsnr train {name}`{kept}; measured by: `benchmarks/{script}.py`.
{sheet}
## Training

| stage | steps | images | seconds | legs |
|---|---|---|---|---|
{stages}

A new leg of the denoiser starts from the weights of the last with a new optimiser and a warm-up.

## Figures

By the second judge, on prompts from the held-out templates, 20 evaluations, 10,000 images a setting, Frechet
distances to {words.reference}. Goals and protocol: `benchmarks/results/{results}.json`.

| figure | value |
|---|---|
{figures}
"""


@dataclass(frozen=True)
class _Words:
    """What a card says of a data set: its tag and kind of pixels, data and captions, and what figures compare with."""

    tag: str
    pixels: str
    about: str
    reference: str


@dataclass(frozen=True)
class _Kind:
    """What a card says of a kind of denoiser: its tag, the parts of the pipeline, and what has which precision."""

    tag: str
    parts: str
    halved: str
    whole: str


_WORDS = {
    "fashion": _Words(
        "fashion-mnist",
        "grey",
        """- Data: Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT licence, 60,000 training images padded to 32x32.
- Captions: 15 templates with 3 more held out, a formal name and two synonyms a class, factor words from the pixels
  (dark, bright, small, large), 10 % empty.""",
        "the 60,000 training images",
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
        "10 augmented views of every\ntrained pair",
    ),
}
_KINDS = {
    DenoiserConfig: _Kind(
        "stable-diffusion",
        """A small Stable Diffusion pipeline trained from scratch on real images: \
AutoencoderKL (32x32 {pixels} to 4x8x8 latents),
CLIP text encoder over a vocabulary of its own, UNet2DConditionModel, and two judges beside it (`judge` and
`judge_second`). It is a small world for measuring methods; it does not replicate the table of any paper.""",
        "UNet",
        "text encoder",
    ),
    FlowDenoiserConfig: _Kind(
        "stable-diffusion-3",
        """A small Stable Diffusion 3 pipeline trained from scratch on real images: \
AutoencoderKL (32x32 {pixels} to 4x8x8
latents), two CLIP text encoders over a vocabulary of their own, SD3Transformer2DModel trained as a rectified flow, and
two judges beside it (`judge` and `judge_second`). It is a small world for measuring methods; it does not replicate the
table of any paper. It has no T5, and diffusers has to be told so, where `logsnr.load` need not:
`StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)`.""",
        "Transformer",
        "text encoders",
    ),
}


def recipe_of(folder: Path) -> Recipe:
    """The recipe that a world's record of its training names; a few-step model has that of its teacher.

    Raises:
        MissingError: there is no record.
        BrokenError: it names no recipe.
    """
    record = folder / "training.json"
    found = read_json(record)
    name = found.get("name") if isinstance(found, dict) else None
    recipe = RECIPES.get(FEW_STEP.get(str(name), str(name)))
    if recipe is None:
        raise BrokenError(f"{record} names no recipe of {', '.join(RECIPES)}: train the world again")
    return replace(recipe, name=str(name))


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
    recipe, stages = recipe_of(folder), read_json(folder / "training.json")
    card = folder / "card.json"
    figures = read_json(card) if card.exists() else {}
    rows = [
        f"| {n} | {s['steps']:,} | {s['images']:,} | {s['seconds']:,} | {s['legs']} |"
        for n, s in stages.items()
        if n != "name"
    ]
    measured = [f"| {figure.replace('_', ' ')} | {value:.4f} |" for figure, value in figures.items()]
    words, kind = _WORDS[recipe.data], _KINDS[type(recipe.denoiser)]
    script, results = ("fashion", "fashion") if recipe.name == "fashion" else ("worlds", "emoji")
    sheet = f"\n![Contact sheet](sheet.png)\n\n{SOURCES[recipe.data].sheet().legend}\n"
    text = _TEXT.format(
        name=recipe.name,
        kind=kind,
        words=words,
        parts=kind.parts.format(pixels=words.pixels),
        sheet=sheet if (folder / "sheet.png").exists() else "",
        kept=f", judges and autoencoder by that of `{recipe.keeps}`" if recipe.keeps else "",
        script=script,
        results=results,
        stages="\n".join(rows),
        figures="\n".join(measured or ["| not measured yet | |"]),
    )
    write_file(folder / "README.md", text)
