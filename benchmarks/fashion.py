"""The fashion world against its data: reconstructions, a faithful and the default setting, and a curve over guidance.

All distances are in the second judge's features to the moments of the 60,000 real training images; the floor is the
distance of the 10,000 real test images. Reconstructions are of the test images, so that they carry the floor as well.
Prompts are worded by the held-out templates, classes balanced. ``--tune`` compares settings on seeds from 1,000,000 on,
which no reported figure uses; the chosen faithful setting is the constant below. Takes about half an hour on two cores.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from record import RESULTS, headline, write_result

import logsnr
from logsnr.data.fashion import CLASSES, load_fashion
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.quality import Judges, Reference, describe, quality_of, reference, sample_quality
from logsnr.solvers.config import SampleConfig
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.autoencoder import reconstruct
from logsnr.worlds.card import write_card
from logsnr.worlds.load import WORLDS, load_world

FAITHFUL = SampleConfig(steps=20, guidance_scale=1.3, rho=0.3)
DEFAULT = SampleConfig(steps=20)
REPORTED = QualityConfig(num_images=10_000)
CURVE = QualityConfig(num_images=2_000, first_seed=20_000)
TUNING = QualityConfig(num_images=2_000, first_seed=1_000_000)
IMAGES = Path(__file__).parent.parent / "docs" / "images"
SEARCHED: tuple[tuple[Any, float, float], ...] = tuple(
    ("scheduler", rho, guidance) for guidance in (1.0, 1.25, 1.5) for rho in (0.0, 0.5, 1.0)
)
"""Faithful settings that ``--tune`` compares: grid, rho, guidance scale."""
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)


class Bench:
    """The loaded world with its references, and one row per measurement."""

    def __init__(self) -> None:
        self.pipe, self.world = logsnr.load("fashion"), load_world("fashion")
        self.judges = Judges(self.world.judge(), self.world.judge(second=True))
        self.test = load_fashion("test")
        self.real: Reference = reference(self.judges.second, load_fashion("train"), self.test)
        self.rows: list[dict[str, Any]] = []

    def images(self, prompts: Sequence[str], seeds: Sequence[int], sampling: SampleConfig) -> torch.Tensor:
        """Samples made in as many threads as there are cores: at this size that beats threads inside the network."""
        cores = os.cpu_count() or 1
        share = -(-len(seeds) // cores)

        def part(first: int) -> torch.Tensor:
            torch.set_num_threads(1)
            rows = slice(first, first + share)
            return logsnr.sample(self.pipe, prompts[rows], seeds=seeds[rows], config=sampling, batch_size=share).images

        with ThreadPoolExecutor(cores) as pool:
            return torch.cat(list(pool.map(part, range(0, len(seeds), share))))

    def row(self, name: str, sampling: SampleConfig, config: QualityConfig) -> dict[str, Any]:
        """Measure one setting."""
        start = time.monotonic()
        figures = sample_quality(
            lambda prompts, seeds: self.images(prompts, seeds, sampling),
            lambda label, template: self.world.captions.prompt(label, template, held_out=True),
            self.judges,
            self.real,
            replace(config, batch_size=400),
        )
        return self._add({"name": name, "sampling": asdict(sampling), **_protocol(config), **figures}, start)

    def reconstructions(self) -> dict[str, Any]:
        """The test images through the autoencoder and back."""
        start = time.monotonic()
        images = reconstruct(self.pipe.vae, self.test.take(torch.arange(len(self.test)))["image"])
        figures = quality_of(images, self.test.labels, self.judges, self.real, REPORTED)
        return self._add({"name": "reconstructions", "num_images": len(images), **figures}, start)

    def _add(self, row: dict[str, Any], start: float) -> dict[str, Any]:
        row["seconds"] = round(time.monotonic() - start, 1)
        self.rows.append(row)
        shown = ("frechet_distance", "recall", "precision", "judge_accuracy_second", "nearest_training_distance")
        print(row["name"], {key: round(row[key], 4) for key in shown}, f"{row['seconds']} s", flush=True)
        return row


def _protocol(config: QualityConfig) -> dict[str, int]:
    return {"num_images": config.num_images, "first_seed": config.first_seed}


def tune() -> None:
    """Compare faithful settings on seeds that are not reported."""
    bench = Bench()
    bench.reconstructions()
    for grid, rho, guidance in SEARCHED:
        setting = SampleConfig(steps=20, grid=grid, rho=rho, guidance_scale=guidance)
        bench.row(f"grid {grid}, rho {rho}, guidance {guidance}", setting, TUNING)


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
    prompts = [bench.world.captions.prompt(label) for label in range(len(CLASSES)) for _ in range(8)]
    made = logsnr.sample(bench.pipe, prompts, seeds=[seed % 8 for seed in range(len(prompts))], config=DEFAULT)
    save_picture(image_grid(made.images, columns=8), IMAGES / "fashion-classes.png")
    prompts = [bench.world.captions.prompt(label) for label in range(len(CLASSES))]
    settings = [replace(DEFAULT, guidance_scale=w) for w in GUIDANCE]
    rows = [logsnr.sample(bench.pipe, prompts, seeds=[0] * len(prompts), config=s).images for s in settings]
    save_picture(image_grid(torch.cat(rows), columns=len(prompts)), IMAGES / "fashion-guidance.png")


def main() -> None:
    bench = Bench()
    made = bench.reconstructions()
    faithful = bench.row("faithful", FAITHFUL, REPORTED)
    default = bench.row("default", DEFAULT, replace(REPORTED, first_seed=10_000))
    curve = [bench.row(f"guidance {w}", replace(DEFAULT, guidance_scale=w), CURVE) for w in GUIDANCE]
    plot(curve, made, bench.real)
    gallery(bench)
    real = {
        "name": "real test images",
        "frechet_distance": bench.real.floor,
        "judge_accuracy_second": bench.real.test_accuracy,
        "per_class": bench.real.test_accuracy_per_class,
        "nearest_training_distance": bench.real.test_nearest,
    }
    found = headlines(bench, made, faithful, default)
    protocol = describe(
        REPORTED, data="Fashion-MNIST", classes=CLASSES, faithful=asdict(FAITHFUL), default=asdict(DEFAULT)
    )
    write_result("fashion", protocol, [real, *bench.rows], found)
    figures = {entry["name"]: entry["value"] for entry in found} | {"real_test_accuracy": bench.real.test_accuracy}
    write_card(WORLDS["fashion"], figures)


if __name__ == "__main__":
    tune() if "--tune" in sys.argv else main()
