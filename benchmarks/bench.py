"""A world on the bench: its pipeline and judges, what real images give, and one row for every measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import logsnr
from logsnr.data.labelled import take_all
from logsnr.evaluation.config import QualityConfig
from logsnr.evaluation.pairs import figures_by_both, measure_samples
from logsnr.evaluation.quality import Judges, Reference, quality_of, reference
from logsnr.solvers.config import SampleConfig
from logsnr.train.preview import image_grid
from logsnr.worlds.autoencoder import reconstruct
from logsnr.worlds.load import load_world

IMAGES = Path(__file__).parent.parent / "docs" / "images"
DEFAULT = SampleConfig(steps=20)
REPORTED = QualityConfig(num_images=10_000)
TUNING = QualityConfig(num_images=2_000, first_seed=1_000_000)
"""Settings are compared on these seeds, which no reported figure uses."""
_SHOWN = (
    "frechet_distance",
    "recall",
    "precision",
    "judge_accuracy_second",
    "concept_top5_second",
    "style_accuracy_second",
    "nearest_training_distance",
)


def settings(guidance: Sequence[float], rho: Sequence[float]) -> list[SampleConfig]:
    """Every guidance scale with every rho, at 20 evaluations."""
    return [replace(DEFAULT, guidance_scale=w, rho=r) for w in guidance for r in rho]


class Bench:
    """The loaded world with its references, and one row per measurement.

    With ``tuning`` the judges change places, so that choices are made by the one that reports nothing.
    """

    def __init__(self, model: str, *, tuning: bool = False) -> None:
        self.pipe, self.world = logsnr.load(model), load_world(model)
        self.judges = Judges(self.world.judge(second=tuning), self.world.judge(second=not tuning))
        self.train, self.test = self.world.source.measuring()
        self.real: Reference = reference(self.judges.second, self.train, self.test)
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
        figures = measure_samples(
            lambda prompts, seeds: self.images(prompts, seeds, sampling),
            partial(self.world.captions.prompt, held_out=True),
            self.world.source.pairs(),
            self.judges,
            self.real,
            replace(config, batch_size=400),
        )
        protocol = {"num_images": config.num_images, "first_seed": config.first_seed}
        return self._add({"name": name, "sampling": asdict(sampling), **protocol, **figures}, start)

    def tune(self, settings: Sequence[SampleConfig]) -> None:
        """Compare settings on seeds that are not reported, beside what the autoencoder allows."""
        self.reconstructions()
        for setting in settings:
            self.row(f"guidance {setting.guidance_scale}, rho {setting.rho}", setting, TUNING)

    def real_images(self) -> dict[str, Any]:
        """The test images as they are."""
        start, items = time.monotonic(), take_all(self.test)
        row = {
            "name": "real test images",
            "frechet_distance": self.real.floor,
            "judge_accuracy_second": self.real.test_accuracy,
            "per_class": self.real.test_accuracy_per_class,
            "nearest_training_distance": self.real.test_nearest,
        }
        return self._add({**row, **self._styled(items["image"], items)}, start)

    def reconstructions(self) -> dict[str, Any]:
        """The test images through the autoencoder and back."""
        start, items = time.monotonic(), take_all(self.test)
        images = reconstruct(self.pipe.vae, items["image"])
        figures = quality_of(images, items["label"], self.judges, self.real, REPORTED)
        row = {"name": "reconstructions", "num_images": len(images), **figures}
        return self._add({**row, **self._styled(images, items)}, start)

    def sheet(self) -> Image.Image:
        """What the world shows, by its own prompts: seeds 0 to 7 across."""
        prompts = self.world.source.sheet().prompts
        seeds = [seed % 8 for seed in range(len(prompts))]
        return image_grid(logsnr.sample(self.pipe, prompts, seeds=seeds, config=DEFAULT).images, columns=8)

    def _styled(self, images: torch.Tensor, items: dict[str, torch.Tensor]) -> dict[str, float]:
        """What both judges read of concepts and styles, where there are styles."""
        if "style" not in items:
            return {}
        return figures_by_both(self.judges, images, items["label"], items["style"])

    def _add(self, row: dict[str, Any], start: float) -> dict[str, Any]:
        row["seconds"] = round(time.monotonic() - start, 1)
        self.rows.append(row)
        print(row["name"], {key: round(row[key], 4) for key in _SHOWN if key in row}, f"{row['seconds']} s", flush=True)
        return row
