"""What an erasure did, for people: a table, pictures of the same seeds before and after, and what is not proven."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.core.artifact import write_file
from logsnr.evaluation.erasure import Judged
from logsnr.evaluation.report import Figure, Section, render
from logsnr.train.preview import image_grid, save_picture

_SHOWN = 8
_NOT_PROVEN = """The counts are of these prompts, seeds and settings. Nothing here says that the concept cannot be \
reached by other words, by an image to start from, by a search for prompts, or by training further: those are attacks, \
and each needs a measurement of its own. The judge errs too: its accuracy on real images is on the model's card."""


@dataclass(frozen=True)
class Images:
    """Images (n, channels, size, size) in [-1, 1], and what the judge says of them."""

    images: Tensor
    judged: Judged


def write_report(
    folder: Path, values: dict[str, Any], before: Tensor, after: Tensor, labels: Tensor, names: Sequence[str]
) -> None:
    """Write report.html and before-after.png to a folder; images (n, channels, size, size) are in [-1, 1]."""
    order = sorted(labels.unique().tolist(), key=lambda label: not values["per_concept"][names[label]]["erased"])
    picture = image_grid(_pairs(before, after, labels, order[:_SHOWN]), columns=2 * _SHOWN)
    save_picture(picture, folder / "before-after.png")
    targets = ", ".join(values["protocol"]["targets"])
    sections = [
        Section("Erased and kept", _summary(values), table=_table(values)),
        Section(
            "The same seeds before and after",
            "Left half: before; right half: after. The erased concepts are in the first rows.",
            [Figure(picture, ", ".join(names[label] for label in order[:_SHOWN]))],
        ),
        Section(
            "What is drawn instead",
            "Classes that the judge sees in images of the erased concepts.",
            table=[("class", "images"), *((name, str(count)) for name, count in values["drawn_instead"].items())],
        ),
        Section("What is not proven", _NOT_PROVEN),
    ]
    protocol = values["protocol"]
    lead = f"{protocol['model']}: {protocol['num_images']} images before and after, seeds from {protocol['first_seed']}"
    write_file(folder / "report.html", render(f"Erasure of {targets}", lead, sections))


def write_images(path: Path, seeds: Sequence[int], names: Sequence[str], before: Images, after: Images) -> None:
    """One line an image: its seed, what was asked, what the judge sees before and after, and hashes of both images."""
    lines: list[tuple[str, ...]] = [("seed", "asked", "seen_before", "seen_after", "sha256_before", "sha256_after")]
    for row, seed in enumerate(seeds):
        seen = [names[int(found.judged.logits[row].argmax())] for found in (before, after)]
        hashes = [_hash(found.images[row]) for found in (before, after)]
        lines.append((str(seed), names[int(before.judged.labels[row])], *seen, *hashes))
    buffer = io.StringIO()
    csv.writer(buffer).writerows(lines)
    write_file(path, buffer.getvalue())


def _hash(image: Tensor) -> str:
    """SHA-256 of an image in [-1, 1] as eight bits a channel."""
    return hashlib.sha256(((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy().tobytes()).hexdigest()


def _pairs(before: Tensor, after: Tensor, labels: Tensor, shown: Sequence[int]) -> Tensor:
    """Rows of images of one class each: the first seeds before, then the same after."""
    rows = []
    for label in shown:
        places = (labels == label).nonzero()[:_SHOWN, 0]
        places = places.repeat(-(-_SHOWN // len(places)))[:_SHOWN]
        rows += [before[places], after[places]]
    return torch.cat(rows)


def _summary(values: dict[str, Any]) -> str:
    return (
        f"Of the erased concepts' images {1 - values['esr1']:.1%} still show them, before the edit "
        f"{1 - values['before']['esr1']:.1%}; of the kept concepts' images {values['psr1']:.1%} show what was asked, "
        f"before {values['before']['psr1']:.1%}."
    )


def _table(values: dict[str, Any]) -> list[tuple[str, ...]]:
    header = ("concept", "", "images", "recognised", "accuracy", "before", "at most (95 %)", "less the judge's errors")
    rows = [
        (
            name,
            "erased" if found["erased"] else "kept",
            str(found["images"]),
            str(found["hits"]),
            f"{found['accuracy']:.3f}",
            f"{found['accuracy_before']:.3f}",
            f"{found['accuracy_upper95']:.3f}",
            "" if found.get("accuracy_corrected") is None else f"{found['accuracy_corrected']:.3f}",
        )
        for name, found in values["per_concept"].items()
    ]
    return [header, *sorted(rows, key=lambda row: (row[1] == "kept", row[0]))]
