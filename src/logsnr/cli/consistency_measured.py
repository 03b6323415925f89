"""``logsnr consistency report`` and ``search-sigma``: how neighbouring levels disagree, and the best second level."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsnr.cli.console import Console, Model, check_writable
from logsnr.consistency.config import ConsistencyConfig, consistency_preset
from logsnr.core.errors import InputError

if TYPE_CHECKING:
    from logsnr.consistency.search import Tried

_SEARCHED = 2_000_000
"""Seeds of the search's images begin here, far from those that people show or report."""


@dataclass(frozen=True, kw_only=True)
class Report(Console):
    """How much neighbouring noise levels disagree on the clean sample, and how many of the differences are outliers."""

    model: Model
    """A world's pipeline, or a pipeline that `consistency train` made of one."""
    world: str = "fashion"
    """The world whose training images are used, where MODEL is not one itself."""
    preset: str = "slct_small"
    """The preset whose penalty, scale and stages are used; pairs are of the data, also for distil."""
    num_levels: int = 21
    """Noise levels of the grid whose every pair of neighbours is measured."""
    samples: int = 512
    """Training images that are measured at every pair."""
    seed: int = 0
    """Seed of images, captions and noise."""
    out: Path = Path("out")
    """Folder of differences.json, differences.csv and differences.png."""

    def run(self) -> int:
        from logsnr.core.artifact import write_file, write_json
        from logsnr.evaluation.plots import plot_differences
        from logsnr.train.preview import save_picture

        start, config = time.monotonic(), self._config()
        check_writable(self.out)
        values: dict[str, Any] = {"model": self.model, "preset": self.preset, "seed": self.seed}
        values |= self._measure(config)
        plot = save_picture(plot_differences(values), self.out / "differences.png")
        write_file(self.out / "differences.csv", _csv(values["levels"]))
        values |= {"steps": config.run.steps, "seconds": round(time.monotonic() - start, 1), "plot": str(plot)}
        write_json(self.out / "differences.json", values)
        self.result(values, _lines(values))
        return 0

    def _config(self) -> ConsistencyConfig:
        if self.num_levels < 3 or self.samples < 2:
            raise InputError("a report needs at least 3 levels and 2 samples")
        found = consistency_preset(self.preset, norm="keep", start_from="teacher")
        if found.levels != "grid":
            raise InputError(f"{self.preset} has no grid of levels to report on: take another preset")
        return replace(found, pairs="data", guidance=(1.0,), run=replace(found.run, seed=self.seed))

    def _measure(self, config: ConsistencyConfig) -> dict[str, Any]:
        import torch

        from logsnr.consistency.differences import difference_report, spread
        from logsnr.consistency.train import captioned_latents, observe
        from logsnr.core.random import generator
        from logsnr.worlds.load import is_world, load, load_world

        pipe, world = load(self.model), load_world(self.model if is_world(self.model) else self.world)
        _check_channels(pipe, world.source, world.name)
        train = world.source.training().train
        rows = torch.randperm(len(train), generator=generator(self.seed, "report"))[: max(self.samples, 2048)]
        latents, condition = captioned_latents(pipe, world, rows=rows)
        method = observe(pipe, latents, config, condition=condition)
        raw = {
            "pixels": spread(train.take(rows[: self.samples])["image"]),
            "latents": spread(latents.latents[: self.samples] / 2),
        }
        return {**raw, **difference_report(method, self.num_levels, self.samples)}


def _check_channels(pipe: Any, source: Any, world: str) -> None:
    """Refuse images that the pipeline's autoencoder cannot read."""
    import torch

    image = source.measuring()[0].take(torch.tensor([0]))["image"]
    if (wanted := pipe.vae.config.in_channels) != image.shape[1]:
        raise InputError(f"{world} has images of {image.shape[1]} channels, the model reads {wanted}: name its --world")


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _lines(values: dict[str, Any]) -> list[str]:
    worst = max(values["levels"], key=lambda row: row["extreme_share"])
    shown = {name: f"{100 * values[name]['extreme_share']:.2f} %" for name in ("pixels", "latents")}
    least, most = (pick(row["scale_over_rms"] for row in values["stages"]) for pick in (min, max))
    return [
        f"extreme outliers: {shown['pixels']} of pixels, {shown['latents']} of latents, up to "
        f"{100 * worst['extreme_share']:.2f} % of differences (noise {worst['sigma']:.3g} against "
        f"{worst['next_sigma']:.3g}, excess kurtosis {worst['excess_kurtosis']:.1f})",
        f"the differences fall as levels^{values['slope']:.2f}; the authors' fit is levels^{values['slope_of_fit']}",
        f"the penalty's scale is {least:.2f} to {most:.2f} times their root mean square, stage by stage",
        values["plot"],
    ]


@dataclass(frozen=True, kw_only=True)
class SearchSigma(Console):
    """Find the noise level of a consistency pipeline's second call whose images lie nearest to real ones."""

    model: Model
    """A pipeline that `consistency train` made."""
    world: str = "fashion"
    """The world whose judge, prompts and training images are used, where MODEL is not one itself."""
    sigmas: tuple[float, ...] = ()
    """Levels to try, in the units of the model's scheduler; seven usual ones without any."""
    samples: int = 2000
    """Images of each try."""
    guidance_scale: float = 1.0
    """The guidance that will be served; above 1 a call runs a network twice that is not told it."""
    out: Path = Path("out")
    """Folder of search.json and of the pipeline with the best level, OUT/pipeline."""

    def run(self) -> int:
        from logsnr.core.artifact import staged, write_json
        from logsnr.worlds.load import load

        start, place = time.monotonic(), self.out / "pipeline"
        if self.samples < 100:
            raise InputError(f"{self.samples} images say nothing of a distance: use at least 100")
        check_writable(self.out)
        if place.exists():
            raise InputError(f"{place} is there already: choose another --out, or remove it first")
        pipe = load(self.model)
        found = self._search(pipe)
        best = min((tried for tried in found if tried.sigma is not None), key=lambda tried: tried.frechet_distance)
        values = {
            "model": str(place),
            "steps": 2,
            "sigma": best.sigma,
            "frechet_distance": best.frechet_distance,
            "one_call": found[0].frechet_distance,
            "tried": [[tried.sigma, tried.frechet_distance] for tried in found[1:]],
            "samples": self.samples,
            "guidance_scale": self.guidance_scale,
            "seconds": round(time.monotonic() - start, 1),
        }
        with staged(place) as folder:
            pipe.save_pretrained(folder)
        write_json(self.out / "search.json", values)
        better = "" if values["frechet_distance"] < values["one_call"] else ": the second call does not help"
        self.result(
            values,
            [
                f"best second level {best.sigma:.3g}: Frechet distance {best.frechet_distance:.3f}, after one call "
                f"{values['one_call']:.3f}{better}",
                str(place),
            ],
        )
        return 0

    def _search(self, pipe: Any) -> list[Tried]:
        from tqdm.auto import tqdm

        from logsnr.consistency.search import real_moments, search_sigma, second_levels
        from logsnr.worlds.load import is_world, load_world

        levels, world = second_levels(pipe, self.sigmas), load_world(self.model if is_world(self.model) else self.world)
        _check_channels(pipe, world.source, world.name)
        judge, (train, _) = world.judge(), world.source.measuring()
        prompts, _ = world.source.ask(self.samples, held_out=False)
        seeds = range(_SEARCHED, _SEARCHED + len(prompts))
        real = real_moments(judge, train, 10_000)
        tries = search_sigma(pipe, prompts, seeds, judge, real, levels, guidance_scale=self.guidance_scale)
        return list(tqdm(tries, total=1 + len(levels), unit=" levels", disable=self.quiet))
