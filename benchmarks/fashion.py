"""The fashion world against its data: reconstructions, a faithful and the default setting, and a curve over guidance.

All distances are in the second judge's features to the moments of the 60,000 real training images; the floor is the
distance of the 10,000 real test images. Reconstructions are of the test images, so that they carry the floor as well.
Prompts are worded by the held-out templates, classes balanced. ``--tune`` compares settings on seeds from 1,000,000 on,
which no reported figure uses; the chosen faithful setting is the constant below. Takes about half an hour on two cores.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import Any

import matplotlib as mpl
import torch
from bench import DEFAULT, IMAGES, REPORTED, Bench, settings
from record import RESULTS, headline, write_result

import logsnr
from logsnr.data.fashion import CLASSES
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.quality import Reference, describe
from logsnr.solvers.config import SampleConfig
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.card import write_card

FAITHFUL = SampleConfig(steps=20, guidance_scale=1.3, rho=0.3)
CURVE = QualityConfig(num_images=2_000, first_seed=20_000)
SEARCHED = settings((1.0, 1.25, 1.5), (0.0, 0.5, 1.0))
"""Faithful settings that ``--tune`` compares."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)


def headlines(
    bench: Bench, made: dict[str, Any], faithful: dict[str, Any], default: dict[str, Any]
) -> list[dict[str, Any]]:
    """The six goals of the world, computed from the rows."""
    real = bench.real
    gaps = [r - s for r, s in zip(real.test_accuracy_per_class, faithful["per_class"], strict=True)]
    distance, spread = made["frechet_distance"], 2 * faithful["frechet_stderr"] / made["frechet_distance"]
    ratio = faithful["frechet_distance"] / distance
    return [
        headline("reconstruction_to_floor", distance / real.floor, 12, "<="),
        headline("faithful_accuracy_gap", real.test_accuracy - faithful["judge_accuracy_second"], 0.01, "<="),
        headline("worst_class_gap", max(gaps), 0.05, "<="),
        headline("frechet_to_reconstruction", ratio, 2, "<=", (ratio - spread, ratio + spread)),
        headline("recall_ratio", faithful["recall"] / made["recall"], 0.9, ">="),
        headline("default_accuracy", default["judge_accuracy_second"], 0.95, ">="),
    ]


def plot(curve: list[dict[str, Any]], made: dict[str, Any], real: Reference) -> None:
    """Accuracy, distance and recall over guidance, as a picture."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    scales = [row["sampling"]["guidance_scale"] for row in curve]
    panels = (
        ("judge_accuracy_second", "accuracy, second judge", {"real test images": real.test_accuracy}),
        ("frechet_distance", "Frechet distance", {"reconstructions": made["frechet_distance"]}),
        ("recall", "recall", {"reconstructions": made["recall"]}),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, (key, label, lines) in zip(axes, panels, strict=True):
        axis.plot(scales, [row[key] for row in curve], marker="o", color="#2f6db5")
        for name, value in lines.items():
            axis.axhline(value, color="#8a8f98", linestyle="--", linewidth=1, label=name)
        axis.set(xlabel="guidance scale", title=label)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "fashion.png", dpi=110)


def gallery(bench: Bench) -> None:
    """The pictures of README and gallery: every class with seeds 0 to 7, and the same seeds under rising guidance."""
    save_picture(bench.sheet(), IMAGES / "fashion-classes.png")
    prompts = [bench.world.captions.prompt(label) for label in range(len(CLASSES))]
    settings = [replace(DEFAULT, guidance_scale=w) for w in GUIDANCE]
    rows = [logsnr.sample(bench.pipe, prompts, seeds=[0] * len(prompts), config=s).images for s in settings]
    save_picture(image_grid(torch.cat(rows), columns=len(prompts)), IMAGES / "fashion-guidance.png")


def main() -> None:
    bench = Bench("fashion")
    real, made = bench.real_images(), bench.reconstructions()
    faithful = bench.row("faithful", FAITHFUL, REPORTED)
    default = bench.row("default", DEFAULT, replace(REPORTED, first_seed=10_000))
    curve = [bench.row(f"guidance {w}", replace(DEFAULT, guidance_scale=w), CURVE) for w in GUIDANCE]
    plot(curve, made, bench.real)
    gallery(bench)
    found = headlines(bench, made, faithful, default)
    protocol = describe(
        REPORTED, data="Fashion-MNIST", classes=CLASSES, faithful=asdict(FAITHFUL), default=asdict(DEFAULT)
    )
    write_result("fashion", protocol, bench.rows, found)
    figures = {entry["name"]: entry["value"] for entry in found}
    write_card(bench.world.folder, figures | {"real_test_accuracy": real["judge_accuracy_second"]})


if __name__ == "__main__":
    Bench("fashion").tune(SEARCHED) if "--tune" in sys.argv else main()
