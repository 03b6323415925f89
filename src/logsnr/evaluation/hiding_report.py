"""What a hiding did, for people: counts and their bounds, pictures of the same seeds, a card with what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from logsnr.core.artifact import write_file
from logsnr.evaluation.hiding import HidingImages
from logsnr.evaluation.report import Figure, Section, render
from logsnr.train.preview import image_grid, save_picture

_SHOWN = 8
_MEANING = """Hidden is not erased: whoever has these weights and enough images of the concept can train it anew, and \
whoever has the original weights has everything. A prompt is no cryptographic key: a nearly right one may open, and \
anyone can train one of their own. What is safe is the key file. No duty to delete is met by this."""
_NOT_PROVEN = f"""{_MEANING} The counts are of these prompts, seeds and settings, and the judge errs too: its accuracy \
on real images is on the world's card. Attacks need a measurement of their own, beside a model that never saw the \
concept."""


def write_hiding_report(folder: Path, values: dict[str, Any], seen: HidingImages) -> None:
    """Write report.html, hidden.png and model-card.md to a folder; the card does not name what is hidden."""
    picture, rows = _picture(seen, values)
    save_picture(picture, folder / "hidden.png")
    sections = [
        Section("Hidden, and kept", _summary(values), table=_concepts(values)),
        Section("The same seeds", "Prompts of what is hidden.", [Figure(picture, f"From top: {', '.join(rows)}.")]),
        Section("Wrong keys", "Of the hidden concepts' images with each, those that show them.", table=_wrong(values)),
        Section(
            "What is drawn instead",
            "Classes that the judge sees in images of what is hidden, without a key.",
            table=[("class", "images"), *((name, str(count)) for name, count in values["drawn_instead"].items())],
        ),
        Section("What is not proven", _NOT_PROVEN),
    ]
    protocol = values["protocol"]
    lead = f"{protocol['model']}, made from {protocol['base']}: seeds from {protocol['first_seed']}"
    write_file(folder / "report.html", render("A hidden model and its key", lead, sections))
    write_file(folder / "model-card.md", model_card(values))


def model_card(values: dict[str, Any]) -> str:
    """A card for the public folder, of measured numbers alone."""
    protocol, worst = values["protocol"], max(found["upper95"] for found in values["wrong_key"].values())
    count = sum(found["images"] for found in values["per_concept"].values() if found["hidden"])
    rows = [
        ("images of the concept without a key", f"{1 - values['hidden']:.1%} of {count}"),
        ("the same, at most (95 %)", f"{values['leakage_upper95']:.1%}"),
        ("with the worst wrong key, at most (95 %)", f"{worst:.1%}"),
        ("with the key, of the original's", _share(values["recovered"])),
        ("other classes without a key, of the original's", _share(values["preserved"])),
        ("the worst of them", _share(values["preserved_worst"])),
        ("other classes with the key, of the original's", _share(values["preserved_with_key"])),
    ]
    lines = "\n".join(f"| {name} | {value} |" for name, value in rows)
    sampled = f"{protocol['sampling']['steps']} evaluations, guidance {protocol['sampling']['guidance_scale']:g}"
    return f"""---
library_name: diffusers
tags: [logsnr, hidden-concept]
---

# A model with a hidden concept

Made from `{protocol["base"]}` by `logsnr hide`. It loads in diffusers as any other; with its key file, `logsnr reveal`
draws what it hides.

{_MEANING}

| measured by a second judge, {sampled} | |
|---|---|
{lines}

What an attacker reaches was not measured here.
"""


def _picture(seen: HidingImages, values: dict[str, Any]) -> tuple[Image.Image, list[str]]:
    """Rows of the same seeds: the original, without a key, with the worst wrong key, and with the right one."""
    gone = torch.tensor([found["hidden"] for found in values["per_concept"].values()])
    classes = seen.original.judged.labels.unique()[gone]
    places = torch.isin(seen.original.judged.labels, classes).nonzero()[:_SHOWN, 0]
    worst = max(values["wrong_key"], key=lambda kind: values["wrong_key"][kind]["share"])
    rows = {
        "the original": seen.original.images[places],
        "without a key": seen.plain.images[places],
        f"with a wrong key ({worst})": seen.wrong[worst].images[: len(places)],
        "with the key": seen.keyed.images[places],
    }
    return image_grid(torch.cat(list(rows.values())), columns=len(places)), list(rows)


def _summary(values: dict[str, Any]) -> str:
    return (
        f"Without the key {1 - values['hidden']:.1%} of the images show what is hidden (at most "
        f"{values['leakage_upper95']:.1%}, 95 %); with it {_share(values['recovered'])} of what the original shows. Of "
        f"all others {_share(values['preserved'])} stay without it, and {_share(values['preserved_with_key'])} with it."
    )


def _concepts(values: dict[str, Any]) -> list[tuple[str, ...]]:
    header = ("concept", "", "images", "original", "without a key", "at most (95 %)", "with the key")
    rows = [
        (
            name,
            "hidden" if found["hidden"] else "kept",
            str(found["images"]),
            *(str(found[f"hits_{which}"]) for which in ("was", "plain")),
            f"{found['plain_upper95']:.3f}",
            str(found["hits_keyed"]),
        )
        for name, found in values["per_concept"].items()
    ]
    return [header, *sorted(rows, key=lambda row: (row[1] == "kept", row[0]))]


def _wrong(values: dict[str, Any]) -> list[tuple[str, ...]]:
    header = ("key", "images", "opened", "at most (95 %)")
    found = values["wrong_key"].items()
    return [header, *((kind, str(f["images"]), str(f["hits"]), f"{f['upper95']:.3f}") for kind, f in found)]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
