"""Ship a model that consistency_few.py made as the world fashion-few.

python benchmarks/ship_few.py runs/consistency/few-distil-0 writes src/logsnr/worlds/fashion_few: the pipeline in half
precision (the text encoder whole), the judges of `fashion`, and a card of what the benchmark measured.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from record import RESULTS

from logsnr.core.artifact import staged, write_file, write_json
from logsnr.models.pipeline import open_pipeline
from logsnr.worlds.load import WORLDS

KEPT, PLACE = RESULTS / "consistency", WORLDS["fashion"].parent / "fashion_few"
SHARED = ("judge", "judge_second", "text_encoder", "tokenizer", "vae")
CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [diffusers, stable-diffusion, fashion-mnist, consistency]
---

# fashion-few

The world `fashion` in one call or two: its autoencoder, text encoder and judges, and its UNet trained on by consistency
distillation (2303.01469; the loss of 2502.01441, and what the first judge sees) for {steps:,} steps of {batch},
{seconds:,} seconds of one core. {guidance} The scheduler is a `ConsistencyScheduler`.
Data: Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT licence. Weights: Apache-2.0.

- Made by: `benchmarks/consistency_few.py train --seed {seed}` and `benchmarks/ship_few.py`.
- Measured by the second judge on prompts from held-out templates, 10,000 images, Frechet distances to the 60,000
  training images; the teacher by its best guidance and solver. Protocol: `benchmarks/results/consistency.json`.

| model | calls | guidance | Frechet distance | judge accuracy | recall |
|---|---|---|---|---|---|
{rows}
"""


def main(source: Path) -> None:
    """Write the folder anew, and rename it into place."""
    path, seed = source.name.removeprefix("few-").rsplit("-", 1)
    model: dict[str, Any] = json.loads((KEPT / f"few-{path}-{seed}.json").read_text())
    teacher = json.loads((KEPT / "teacher.json").read_text())
    pipe, world = open_pipeline(source), WORLDS["fashion"]
    with staged(PLACE, replace=True) as folder:
        pipe.unet.register_to_config(_name_or_path="fashion-few")  # not a path of this machine
        pipe.unet.to(torch.float16).save_pretrained(folder / "unet")
        pipe.scheduler.save_pretrained(folder / "scheduler")
        for part in SHARED:
            shutil.copytree(world / part, folder / part)
        index = json.loads((source / "model_index.json").read_text())
        write_json(
            folder / "model_index.json", {name: value for name, value in index.items() if name != "_name_or_path"}
        )
        config = model["config"]
        run = {"steps": config["run"]["steps"], "images": config["run"]["steps"] * config["run"]["batch_size"]}
        stage = {**run, "seconds": round(model["train_seconds"]), "legs": 1}
        write_json(folder / "training.json", {"name": "fashion-few", "consistency": stage})
        write_json(folder / "card.json", figures(model["rows"]))
        named = [("fashion-few", row) for row in model["rows"]] + [("fashion", row) for row in teacher["rows"]]
        told = {"steps": run["steps"], "batch": config["run"]["batch_size"], "seconds": stage["seconds"], "seed": seed}
        text = CARD.format(
            **told, guidance=guidance(*config["guidance"]), rows="\n".join(line(*pair) for pair in named)
        )
        write_file(folder / "README.md", text)


def guidance(*scales: float) -> str:
    """What the card says of it."""
    if len(scales) == 1:
        return f"The teacher's guidance of {scales[0]:g} is its own: sample it at 1."
    return f"It is told its guidance (2310.04378), from {scales[0]:g} to {scales[1]:g}, so that no call is made for it."


def figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The card's figures."""
    names = {"1": "one_call", "2": "two_calls"}
    return {
        f"{names[row['name'].split()[0]]}_{figure}": row[figure]
        for row in rows
        for figure in ("frechet_distance", "judge_accuracy_second")
    }


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the card."""
    shown = f"{row['frechet_distance']:.3f} | {row['judge_accuracy_second']:.4f} | {row['recall']:.3f}"
    return f"| {name} | {row['name'].split()[0]} | {row['sampling']['guidance_scale']:g} | {shown} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
