"""Consistency training of vectors: every ingredient alone, added in turn, and left out, on data with outliers.

    python benchmarks/consistency_vectors.py [--rows NAME ...] [--cells main ...] [--seeds 0 1 ...] [--steps 20000]

Data are twelve Gaussian modes in two dimensions through a fixed random map into 16 or 64, bounded by tanh.
Contaminated, 2 % of the entries, or of whole samples, are drawn from Student's t with two degrees of freedom instead.
Networks are residual perceptrons with one norm a block. Every row has the same network, data, steps and learning rate.
Distances are to held-out data of the same kind and to clean data: Frechet distance of the vectors themselves and sliced
Wasserstein distance, after one call and after two; to contaminated data the former has no finite limit, for the
outliers' variance has none. The row "mean flow" is another method on the same terms. What is done is kept in
results/consistency/.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from meanflow import MeanFlow
from meanflow import generated as flown
from record import RESULTS
from torch import Tensor, nn

from logsnr.consistency.config import ConsistencyConfig, consistency_preset
from logsnr.consistency.differences import level_rows
from logsnr.consistency.function import consistency_levels
from logsnr.consistency.method import ConsistencyMethod
from logsnr.consistency.norms import replace_norms
from logsnr.consistency.train import scheduler_of
from logsnr.core.artifact import write_json
from logsnr.core.random import generator
from logsnr.metrics.frechet import frechet_distance, moments
from logsnr.schedules.boundary import Boundary
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit

RATE = 3e-4
KEPT = RESULTS / "consistency"
MODES, TRAINED, HELD_OUT, MIDDLE = 12, 50_000, 10_000, 0.37
_NEVER = 1e9
"""Gradients are measured, and never clipped."""
FULL: dict[str, Any] = {"coupling": "plain", "scale": "fit", "norm": "nsln", "denoising_weight": 5.0}
"""The paper's recipe."""
RELEASED: dict[str, Any] = {
    "penalty": "huber",
    "scale": "root-size",
    "scale_value": 0.00054,
    "denoising_weight": 0.0,
    "coupling": "off",
    "norm": "keep",
}
"""Its baseline as it was run."""
_CAUCHY = {**RELEASED, "penalty": "cauchy"}
_DENOISING = {**_CAUCHY, "denoising_weight": 5.0}
_COUPLED = {**_DENOISING, "coupling": "plain"}
_SCALED = {**_COUPLED, "scale": "fit", "scale_value": 1.0}
ROWS: dict[str, dict[str, Any]] = {
    "l2": {**RELEASED, "penalty": "l2"},
    "huber, scale of iCT": {**RELEASED, "scale": "constant"},
    "huber, as released": RELEASED,
    "cauchy": _CAUCHY,
    "geman-mcclure": {**RELEASED, "penalty": "geman-mcclure"},
    "cauchy of elements": {**_CAUCHY, "reduction": "elements"},
    "+ diffusion loss": _DENOISING,
    "+ coupling": _COUPLED,
    "+ scale by the fit": _SCALED,
    "+ scale online": {**_COUPLED, "scale": "online", "scale_value": 1.0},
    "full": FULL,
    "full, huber": {**FULL, "penalty": "huber"},
    "full, no diffusion loss": {**FULL, "denoising_weight": 0.0},
    "full, no coupling": {**FULL, "coupling": "off"},
    "full, constant scale": {**FULL, "scale": "root-size", "scale_value": 0.00054},
    "full, no norm": {**FULL, "norm": "keep"},
}
MAIN = ("huber, scale of iCT", "huber, as released", "cauchy", "full")
"""The rows of all cells but the main one."""
MEAN_FLOW = "mean flow"


@dataclass(frozen=True)
class Cell:
    """One kind of data and curriculum."""

    dimension: int = 64
    contamination: str = "entries"
    end_levels: int = 160


CELLS = {
    "main": Cell(),
    "clean": Cell(contamination="none"),
    "samples": Cell(contamination="samples"),
    "narrow": Cell(dimension=16),
    "fine": Cell(end_levels=640),
}


class Vectors:
    """Draws (count, dimension) of deviation 1/2 of the clean data, as ``fit`` reads them."""

    def __init__(self, cell: Cell, count: int, seed: int):
        draws = generator(seed, "vectors")
        self.modes = torch.randint(MODES, (count,), generator=draws)
        latent = self._decode(self.modes, torch.randn(count, 2, generator=draws), cell.dimension)
        if cell.contamination != "none":
            shape = latent.shape if cell.contamination == "entries" else (count, 1)
            wild = (
                torch.randn(latent.shape, generator=draws)
                / torch.rand(latent.shape, generator=draws).log().neg().sqrt()
            )
            latent = torch.where(torch.rand(shape, generator=draws) < 0.02, 0.5 * wild, latent)
        self.latent = latent

    @staticmethod
    def _decode(modes: Tensor, noise: Tensor, dimension: int) -> Tensor:
        """Modes on a ring, through a map that is the same for all data of a dimension."""
        angles = 2 * math.pi * modes / MODES
        flat = 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.15 * noise
        fixed = generator(0, "decoder", dimension)
        first, second = torch.randn(2, 32, generator=fixed), torch.randn(32, dimension, generator=fixed)
        raw = torch.tanh((flat @ first).tanh() @ second / 4)
        return 0.5 * (raw - raw.mean()) / raw.std()

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        return {"latent": self.latent[indices]}


class Perceptron(nn.Module):
    """Residual blocks of width 256 that read the time, each with a norm that ``replace_norms`` finds."""

    def __init__(self, dimension: int, width: int = 256, depth: int = 3, times: int = 1):
        super().__init__()
        self.first, self.last = nn.Linear(dimension, width), nn.Linear(width, dimension)
        self.time = nn.Sequential(nn.Linear(32 * times, width), nn.SiLU())
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(depth))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        rates = torch.logspace(-3, 0, 16, device=x.device)
        waves = (timesteps.view(len(x), -1, 1) * rates / 16).flatten(1)
        h = self.first(x) + self.time(torch.cat([waves.sin(), waves.cos()], 1))
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(norm(h[..., None])[..., 0])
        return self.last(h)


def run_of(seed: int, steps: int) -> FitConfig:
    """How every row is trained."""
    return FitConfig(steps=steps, batch_size=128, warmup=0, clip=_NEVER, seed=seed, cpu=True, log_every=20)


def config_of(row: str, cell: Cell, seed: int, steps: int) -> ConsistencyConfig:
    """What is trained."""
    options = {"start_from": "scratch", "end_levels": cell.end_levels, "start_levels": 10, "learning_rate": RATE}
    return replace(consistency_preset("slct"), **{**options, **ROWS[row], "run": run_of(seed, steps)})


def train(config: ConsistencyConfig, cell: Cell) -> tuple[ConsistencyMethod, list[float]]:
    """The method at the end of training, and the norms of its gradients."""
    torch.manual_seed(config.run.seed)
    network = Perceptron(cell.dimension)
    if config.norm != "keep":
        replace_norms(network, config.norm, (torch.zeros(2, cell.dimension), torch.zeros(2)))
    data = Vectors(cell, TRAINED, 1000 + config.run.seed)
    told = scheduler_of(replace(config, norm="keep"), None).config
    method = ConsistencyMethod(network, network, told, data, config)
    norms = [float(found.logs["gradient_norm"]) for found in fit(method, data, config.run) if found.logs]
    return method, norms


@torch.no_grad()
def generated(method: ConsistencyMethod, sigmas: Sequence[float], seed: int) -> Tensor:
    """Samples of the average, by as many calls as there are levels."""
    config, draws = method.config, generator(seed, "generated")
    boundary = Boundary(config.sigma_min, config.sigma_data)
    levels = consistency_levels(method.levels, boundary, sigmas)
    network = next(iter(method.averages.values())).network.eval()
    x = torch.zeros(HELD_OUT, method.data.take(torch.zeros(1, dtype=torch.long))["latent"].shape[1])
    for place, sigma in enumerate(sigmas):
        size = sigma if place == 0 else boundary.renoised(sigma)
        noisy = x + size * torch.randn(x.shape, generator=draws)
        x = levels(network, noisy, torch.full((len(x),), place))
    return x


def distances(made: Tensor, real: Tensor) -> dict[str, float]:
    """Frechet distance of the vectors, and the mean Wasserstein distance of 200 projections."""
    axes = nn.functional.normalize(torch.randn(made.shape[1], 200, generator=generator(0, "axes")), dim=0)
    sliced = ((made @ axes).sort(0).values - (real @ axes).sort(0).values).abs().mean()
    return {"frechet": frechet_distance(moments(made), moments(real)), "sliced": float(sliced)}


def modes_found(made: Tensor, clean: Vectors) -> int:
    """How many modes have at least a quarter of their share among the samples, each given to the nearest centre."""
    centres = torch.stack([clean.latent[clean.modes == mode].mean(0) for mode in range(MODES)])
    counts = torch.cdist(made, centres).argmin(1).bincount(minlength=MODES)
    return int((counts > len(made) / MODES / 4).sum())


def compared(made: Tensor, cell: Cell) -> dict[str, Any]:
    """Samples against held-out data of their kind and against clean data."""
    real, clean = Vectors(cell, HELD_OUT, 500_000), Vectors(replace(cell, contamination="none"), HELD_OUT, 500_001)
    finite = bool(made.isfinite().all())
    return {
        "to_own": distances(made, real.latent) if finite else None,
        "to_clean": distances(made, clean.latent) if finite else None,
        "modes": modes_found(made, clean) if finite else 0,
    }


def measure_mean_flow(name: str, seed: int, steps: int) -> dict[str, Any]:
    """MeanFlow with the same network, but for a second time that it is told, data, steps and learning rate."""
    cell, start = CELLS[name], time.monotonic()
    torch.manual_seed(seed)
    method = MeanFlow(Perceptron(cell.dimension, times=2), steps, RATE)
    for _ in fit(method, Vectors(cell, TRAINED, 1000 + seed), run_of(seed, steps)):
        pass
    seconds, network = time.monotonic() - start, method.average.network.eval()
    noise = torch.randn(HELD_OUT, cell.dimension, generator=generator(900_000, "generated"))
    found = {
        calls: compared(flown(network, noise, times), cell) for calls, times in (("one", [1.0]), ("two", [1.0, 0.5]))
    }
    told = {"row": MEAN_FLOW, "cell": name, "seed": seed, "steps": steps, "diverged": not found["one"]["to_own"]}
    return {**told, "seconds": round(seconds, 1), **found}


def measure(row: str, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one row on one cell with one seed, and measure it."""
    if row == MEAN_FLOW:
        return measure_mean_flow(name, seed, steps)
    cell, start = CELLS[name], time.monotonic()
    config = config_of(row, cell, seed, steps)
    method, norms = train(config, cell)
    seconds = time.monotonic() - start
    method.module = method.network = next(iter(method.averages.values())).network
    levels = {"one": [config.sigma_max], "two": [config.sigma_max, MIDDLE]}
    found = {calls: compared(generated(method, sigmas, 900_000), cell) for calls, sigmas in levels.items()}
    rows = list(level_rows(method, 21, 512)) if found["one"]["to_own"] else []
    return {
        "row": row,
        "cell": name,
        "seed": seed,
        "steps": steps,
        "diverged": not rows,
        "skipped": method.skipped,
        "kurtosis": max((found["excess_kurtosis"] for found in rows), default=None),
        "gradient_p99": float(torch.tensor(norms).quantile(0.99)) if norms else None,
        "seconds": round(seconds, 1),
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, MEAN_FLOW])
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=["main"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=KEPT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.cells:
        for seed in options.seeds:
            for row in options.rows or ([*ROWS, MEAN_FLOW] if name == "main" else MAIN):
                told = f"vectors-{name}-{row}-{seed}".replace(" ", "_").replace(",", "").replace("+", "plus")
                place = options.out / f"{told}.json"
                if not place.exists():
                    found = measure(row, name, seed, options.steps)
                    write_json(place, found)
                    print(told, json.dumps({calls: found[calls]["to_clean"] for calls in ("one", "two")}), flush=True)


if __name__ == "__main__":
    main()
