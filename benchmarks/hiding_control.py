"""Two bases for the attack study on hiding: of the same recipe and steps, one without the class.

    python benchmarks/hiding_control.py with|without [--target "ankle boot"] [--steps 6000] [--resume]

Both have the judges and the autoencoder of `fashion`. The denoiser of `without` sees no image and no caption of the
class; its word stays in the vocabulary, untrained. The pipelines go to results/hiding/bases/.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from record import RESULTS

from logsnr.core.artifact import staged
from logsnr.data.captions import pixel_factors
from logsnr.data.fashion import load_fashion
from logsnr.data.labelled import Labelled
from logsnr.evaluation.erasure import class_labels
from logsnr.train.config import FitConfig
from logsnr.worlds.config import FASHION, Recipe
from logsnr.worlds.data import SOURCES, WorldData
from logsnr.worlds.load import WORLDS
from logsnr.worlds.recipe import train_world

BASES = RESULTS / "hiding" / "bases"
WORK = Path("runs") / "hiding-bases"
KEPT = {"judge": "judge", "judge_second": "judge_second", "vae": "autoencoder"}


def data_of(target: str, *, without: bool) -> WorldData:
    """Fashion-MNIST as the world sees it, with the class or without its images and captions."""
    data = SOURCES["fashion"].training()
    if not without:
        return data
    train = load_fashion("train")
    rows = train.labels != class_labels([target], data.captions.names)[0]
    few = Labelled(train.images[rows], train.labels[rows], train.classes)
    return replace(data, train=few, factors=lambda: pixel_factors(few.images, few.labels))


def recipe_of(steps: int) -> Recipe:
    """The world's own recipe, of fewer steps, by the optimiser that learns more in each."""
    run: FitConfig = replace(FASHION.runs["denoiser"], steps=steps, cpu=True)
    return replace(
        FASHION, denoiser=replace(FASHION.denoiser, optimizer="muon"), runs={**FASHION.runs, "denoiser": run}
    )


def train(name: str, target: str, steps: int, *, resume: bool = False) -> None:
    """Train a base and put its pipeline, without the judges, where the study finds it."""
    out = WORK / f"{name}-{target}".replace(" ", "-")
    for part, stage in KEPT.items():
        if not (out / stage).exists():
            with staged(out / stage) as folder:
                shutil.copytree(WORLDS["fashion"] / part, folder, dirs_exist_ok=True)
    data = data_of(target, without=name == "without")
    for _, progress in train_world(recipe_of(steps), data, out, resume=resume):
        if progress.step % 500 == 0:
            print(name, progress.step, progress.logs, flush=True)
    with staged(BASES / name) as folder:
        shutil.copytree(
            out / "pipeline", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("judge*", "README.md")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=["with", "without"])
    parser.add_argument("--target", default="ankle boot")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--resume", action="store_true")
    chosen = parser.parse_args()
    train(chosen.name, chosen.target, chosen.steps, resume=chosen.resume)


if __name__ == "__main__":
    main()
