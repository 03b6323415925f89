"""Frechet distances on the trained network at a few calls, and quality against rho.

    python benchmarks/frechet.py --calls 5 8      ours and the peers that got their own grids, 5,000 images each
    python benchmarks/frechet.py --rho            four values of rho at 8, 20 and 50 calls, 2,000 images each

Distances are in the second judge's features to the moments of the 60,000 real training images. All methods start from
the same noise with the same prompts (guidance 1). A peer's grid is the one with the least paired error on the selection
set of ``solvers.py``, its searched grid included; ours is calibrated on seeds of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peers import PEERS
from problems import fashion
from record import RESULTS
from solvers import OPTIMISED, Run, Trial, exponential, full, noise_of, quick
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.core.types import Level
from logsnr.data.fashion import load_fashion
from logsnr.evaluation.quality import class_prompts, reference
from logsnr.metrics.frechet import frechet_distance, moments
from logsnr.metrics.judge import judge_images
from logsnr.models.pipeline import decode_latents
from logsnr.schedules.grids import uniform_log_snr
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.reference import END, Model
from logsnr.solvers.sample import sample
from logsnr.worlds.load import load_world

NUM_IMAGES, FIRST, BATCH, FINE = 5000, 20_000_000, 500, 40
RHO, BUDGETS, RHO_IMAGES = (0.0, 0.3, 0.6, 1.0), (8, 20, 50), 2000


class Bench:
    """The network, the judge, and the moments of real images."""

    def __init__(self) -> None:
        self.problem, self.pipe, self.world = fashion(1.0), logsnr.load("fashion"), load_world("fashion")
        self.judge = self.world.judge(second=True)
        self.real = reference(self.judge, load_fashion("train"), load_fashion("test"))

    def features(self, run: Run, grid: Sequence[Level]) -> Tensor:
        """Judge's features (NUM_IMAGES, d) of a solver's images."""
        parts = []
        for first in range(FIRST, FIRST + NUM_IMAGES, BATCH):
            problem = self.problem
            model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(range(first, first + BATCH)))
            z = run(model, noise_of(problem, first, BATCH), grid, torch.arange(BATCH))
            parts.append(judge_images(self.judge, decode_latents(self.pipe, z.reshape(-1, *problem.shape)))[0])
        return torch.cat(parts)

    def distance(self, features: Tensor) -> float:
        """Frechet distance to the real training images."""
        return frechet_distance(moments(features), self.real.moments)


def compare(bench: Bench, calls: int) -> None:
    """Distances of ours, of three peers, and of the fine solution at one number of calls."""
    start, trial = time.monotonic(), Trial(bench.problem, seed=10)
    features: dict[str, Tensor] = {}
    grids: dict[str, str] = {}
    for name, config in (("ours, calibrated quickly", quick(calls)), ("ours, calibrated", full(calls))):
        table, record = trial.table(config)
        grids[name], features[name] = (
            record["winner"],
            bench.features(exponential(table.solver()), table.levels(trial.model.unit)),
        )
    ours = table.levels(trial.model.unit)
    for peer in (peer for peer in PEERS if peer.name in OPTIMISED):
        name, grid = trial.chosen_grid(peer, calls, ours)
        own = trial.searched_grid(peer, grid)
        searched = trial.selection_error(peer, own) < trial.selection_error(peer, grid)
        grids[peer.name] = "searched" if searched else name
        features[peer.name] = bench.features(peer.run, own if searched else grid)
    fine = uniform_log_snr(trial.model.unit, FINE, end=END)
    grids["fine"], features["fine"] = f"{FINE} calls", bench.features(exponential(Exponential(3)), fine)
    rows = [
        {"method": name, "grid": grids[name], "calls": calls, "frechet_distance": bench.distance(found)}
        for name, found in features.items()
    ]
    best = min((row for row in rows if row["method"] in OPTIMISED), key=lambda row: row["frechet_distance"])["method"]
    ratios = {
        name: [best, *interval(bench, features[name], features[best])] for name in features if name.startswith("ours")
    }
    found = {"rows": rows, "ratios": ratios, "floor": bench.real.floor, "seconds": round(time.monotonic() - start)}
    write_json(RESULTS / "solvers" / f"fashion-frechet-{calls}.json", found)
    print(found, flush=True)


def interval(bench: Bench, ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """The ratio of two distances with a 95 % bootstrap interval over images, the same ones for both."""
    draws, values = torch.Generator().manual_seed(0), []
    for _ in range(200):
        rows = torch.randint(len(ours), (len(ours),), generator=draws)
        values.append(bench.distance(ours[rows]) / bench.distance(theirs[rows]))
    low, high = np.quantile(values, [0.025, 0.975])
    return bench.distance(ours) / bench.distance(theirs), float(low), float(high)


def against_rho(bench: Bench) -> None:
    """Quality against the noise multiplier at fixed numbers of calls, as `sample` makes images by default."""
    prompts, labels = class_prompts(
        lambda label, template: bench.world.captions.prompt(label, template), 10, RHO_IMAGES
    )
    seeds, rows = range(FIRST, FIRST + RHO_IMAGES), []
    for calls in BUDGETS:
        for rho in RHO:
            config = SampleConfig(steps=calls, rho=rho, guidance_scale=1.0)
            images = sample(bench.pipe, prompts, seeds=seeds, config=config, batch_size=100).images
            features, logits = judge_images(bench.judge, images)
            accuracy = float((logits.argmax(1) == labels).float().mean())
            row: dict[str, Any] = {"calls": calls, "rho": rho, "frechet_distance": bench.distance(features)}
            rows.append({**row, "judge_accuracy_second": accuracy})
            print(rows[-1], flush=True)
    best = {str(calls): min((r for r in rows if r["calls"] == calls), key=_distance)["rho"] for calls in BUDGETS}
    write_json(RESULTS / "solvers" / "fashion-rho.json", {"rows": rows, "best_rho": best, "images": RHO_IMAGES})


def _distance(row: dict[str, Any]) -> float:
    return row["frechet_distance"]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", nargs="+", type=int, default=[])
    parser.add_argument("--rho", action="store_true")
    chosen, bench = parser.parse_args(), Bench()
    for calls in chosen.calls:
        compare(bench, calls)
    if chosen.rho:
        against_rho(bench)


if __name__ == "__main__":
    main()
