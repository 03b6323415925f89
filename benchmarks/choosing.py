"""What grid, solver and rho change, on mixtures whose denoiser is exact: figures and pictures of the docs.

Writes results/choosing.json and docs/images/{schedules,grids,orders,rho}.png in about a minute on one core. Errors are
paired: the root mean square distance of a sample to the fine solution from the same noise, over the data's standard
deviation, mean and standard error over samples. Mixtures are small and their denoiser makes no error of its own: what
holds here need not hold for a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import digits, ring
from record import write_result
from torch import Tensor

from logsnr.core.random import generator
from logsnr.core.types import Level, Solver
from logsnr.data.mixture import GaussianMixture
from logsnr.evaluation.plots import picture, plt
from logsnr.schedules.families import (
    EDM,
    VE,
    Cosine,
    Flow,
    Laplace,
    LinearVP,
    Shifted,
    Sigmoid,
    Trig,
    scaled_linear,
)
from logsnr.schedules.grids import GRIDS, tangent
from logsnr.schedules.schedule import Schedule, levels_at, levels_of
from logsnr.solvers.exponential import Exponential

IMAGES = Path(__file__).parents[1] / "docs" / "images"
FIRST, LAST = -3.5, 4.5  # log(alpha / sigma) of the order plot
COUNT, REPEATS, RHOS = 20_000, 8, (0.0, 0.5, 1.0, 1.5, "bump")
SCHEDULE = scaled_linear()
SHOWN = {name: make for name, make in GRIDS.items() if not name.startswith("ays")}  # those are for one model
SOLVERS = {
    "order 1": Exponential(1),
    "order 2 midpoint": Exponential(2, variant="midpoint"),
    "order 2 heun": Exponential(2),
    "order 2 midpoint, corrected": Exponential(2, variant="midpoint", corrector=True),
    "order 2 heun, corrected": Exponential(2, corrector=True),
    "order 3": Exponential(3),
    "order 4": Exponential(4),
}
SCHEDULES: dict[str, Schedule] = {
    "VP, linear betas": LinearVP(),
    "VP of Stable Diffusion": SCHEDULE,
    "cosine": Cosine(),
    "sigmoid": Sigmoid(),
    "Laplace": Laplace(),
    "flow": Flow(),
    "flow, shift 3": Shifted(Flow(), 3.0),
    "trigonometric": Trig(),
    "VE": VE(),
    "EDM": EDM(),
}


def line() -> GaussianMixture:
    """Three Gaussians in one dimension."""
    rows = [[0.3, 0.5, 0.2], [-1.2, 0.3, 1.5], [0.04, 0.01, 0.09]]
    weights, means, variances = (torch.tensor(row, dtype=torch.float64) for row in rows)
    return GaussianMixture(weights, means[:, None], variances[:, None])


def noise(count: int, dimension: int, seed: int) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(solver: Solver, data: GaussianMixture, grid: Sequence[Level], x: Tensor, seed: int = 0) -> Tensor:
    """The sample at the end of the grid; every step has noise of its own for solvers that ask for it."""
    memory, draws = None, generator(seed, "steps")  # never the draws of the start
    for here, there in pairwise(grid):
        fresh = torch.randn(x.shape, generator=draws, dtype=torch.float64) if getattr(solver, "noisy", False) else None
        x, memory = solver(data, x, here, there, fresh, memory)
    return x


def errors(found: Tensor, truth: Tensor, std: float) -> dict[str, float]:
    values = (found - truth).square().mean(1).sqrt() / std
    return {"error": float(values.mean()), "stderr": float(values.std() / len(values) ** 0.5)}


def orders() -> list[dict[str, Any]]:
    """Errors of every solver over the number of equal steps in log-SNR, without the step to clean data."""
    data, start = line(), levels_of(SCHEDULE, [2 * FIRST])[0]
    x = start.alpha * data.sample(500, seed=1) + start.sigma * noise(500, 1, 1)

    def solved(solver: Solver, steps: int) -> Tensor:
        grid = levels_of(SCHEDULE, np.linspace(2 * FIRST, 2 * LAST, steps + 1).tolist())
        return run(solver, data, grid, x)

    truth = solved(Exponential(4), 4000)
    counts = [5, 10, 20, 40, 80, 160, 320, 640]
    return [
        {"part": "orders", "solver": name, "steps": steps, **errors(solved(solver, steps), truth, data.std)}
        for name, solver in SOLVERS.items()
        for steps in counts
    ]


def grids() -> list[dict[str, Any]]:
    """Errors of solvers on the well-known grids at few evaluations, from the noisiest level to clean data."""
    rows = []
    for name, data in (("line", line()), ("ring2", ring()), ("digits64", digits())):
        start = SCHEDULE.level(1.0)
        x = start.alpha * data.sample(256, seed=2) + start.sigma * noise(256, data.dimension, 2)
        truth = run(Exponential(3), data, GRIDS["log-snr"](SCHEDULE, 800), x)
        makers = {**SHOWN, "tangent, data_std": partial(tangent, data_std=data.std)}
        for grid, make in makers.items():
            for steps in (5, 10, 20):
                levels = make(SCHEDULE, steps)
                for kind in list(SOLVERS)[:6]:
                    row = {"part": "grids", "problem": name, "grid": grid, "steps": steps, "solver": kind}
                    rows.append({**row, **errors(run(SOLVERS[kind], data, levels, x), truth, data.std)})
    return rows


def quantiles(data: GaussianMixture, count: int) -> Tensor:
    """The sorted sample (count,) that represents a mixture in one dimension best, by its distribution function."""
    points = torch.linspace(-5, 5, 200_001, dtype=torch.float64)
    scaled = (points[:, None] - data.means[:, 0]) / data.variances[:, 0].sqrt()
    chances = (data.weights * torch.special.ndtr(scaled)).sum(1)
    return torch.from_numpy(np.interp((np.arange(count) + 0.5) / count, chances.numpy(), points.numpy()))


def distances() -> list[dict[str, Any]]:
    """Wasserstein distances to the data over steps for several rho, from the right start and from one that is wrong."""
    data, start = line(), SCHEDULE.level(1.0)
    truth = quantiles(data, COUNT)

    def row(draws: Callable[[int], Tensor], **named: Any) -> dict[str, Any]:
        found = torch.stack([(draws(seed)[:, 0].sort().values - truth).abs().mean() for seed in range(REPEATS)])
        return {"part": "rho", **named, "distance": float(found.mean()), "stderr": float(found.std() / REPEATS**0.5)}

    def made(seed: int, *, wrong: bool, rho: float | str, steps: int) -> Tensor:
        x = start.alpha * data.sample(COUNT, seed=seed) + start.sigma * noise(COUNT, 1, seed)
        x = 0.7 * x + 0.3 if wrong else x
        return run(Exponential(2, rho), data, GRIDS["log-snr"](SCHEDULE, steps), x, seed)

    rows = [row(lambda seed: data.sample(COUNT, seed=100 + seed), start="floor")]
    for wrong in (False, True):
        for rho in RHOS:
            for steps in (5, 10, 20, 40, 80):
                draws = partial(made, wrong=wrong, rho=rho, steps=steps)
                rows.append(row(draws, start="wrong" if wrong else "right", rho=rho, steps=steps))
    return rows


def save(figure: Any, name: str) -> None:
    picture(figure).quantize(64).save(IMAGES / f"{name}.png", optimize=True)


def draw_schedules() -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    for name, schedule in SCHEDULES.items():
        levels = levels_at(schedule, [i / 300 for i in range(1, 300)])
        axes.plot([at.t for at in levels], [at.log_snr for at in levels], label=name, linewidth=1.3)
    axes.set(xlabel="t", ylabel="log-SNR", ylim=(-13, 14))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    save(figure, "schedules")


def draw_grids() -> None:
    figure, axes = plt.subplots(figsize=(7, 2.6))
    for place, (name, make) in enumerate(SHOWN.items()):
        values = [at.log_snr for at in make(SCHEDULE, 10)[:-1]]
        axes.plot(values, [-place] * len(values), "o", markersize=5)
        axes.text(-6.1, -place, name, ha="right", va="center")
    axes.set(xlabel="log-SNR of the 10 evaluations, noise on the left", yticks=[], xlim=(-6, 8))
    axes.spines[["left", "right", "top"]].set_visible(False)
    save(figure, "grids")


def draw_orders(rows: Sequence[dict[str, Any]]) -> None:
    figure, axes = plt.subplots(figsize=(6, 4))
    for name in SOLVERS:
        mine = [row for row in rows if row["part"] == "orders" and row["solver"] == name]
        axes.loglog([row["steps"] for row in mine], [row["error"] for row in mine], "o-", markersize=3, label=name)
    axes.set(xlabel="steps", ylabel="paired error / standard deviation of the data")
    axes.legend(frameon=False, fontsize=8)
    save(figure, "orders")


def draw_rho(rows: Sequence[dict[str, Any]]) -> None:
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    floor = next(row["distance"] for row in rows if row.get("start") == "floor")
    for axes, start, title in zip(both, ("right", "wrong"), ("from the right noise", "from wrong noise"), strict=True):
        for rho in RHOS:
            mine = [row for row in rows if row.get("start") == start and row["rho"] == rho]
            label = f"rho {rho}"
            axes.loglog(
                [row["steps"] for row in mine], [row["distance"] for row in mine], "o-", markersize=3, label=label
            )
        axes.axhline(floor, color="0.6", linewidth=0.8, linestyle="--")
        axes.set(xlabel="steps", title=title, xticks=[5, 10, 20, 40, 80], xticklabels=["5", "10", "20", "40", "80"])
        axes.minorticks_off()
    both[0].set_ylabel("distance to the data")
    both[0].legend(frameon=False, fontsize=8)
    save(figure, "rho")


PARTS: tuple[Callable[[], list[dict[str, Any]]], ...] = (orders, grids, distances)


def main() -> None:
    """Measure, write and draw everything."""
    rows = [row for part in PARTS for row in part()]
    protocol = {
        "schedule": "scaled linear, 1,000 betas from 0.00085 to 0.012, made continuous",
        "orders": "1-D mixture of three Gaussians, 500 starts, log(alpha / sigma) from -3.5 to 4.5, equal steps",
        "grids": "256 starts, t from 1 to 0.001, then clean data; reference of 800 steps of order 3",
        "rho": "1-D mixture, 8 times 20,000 starts, Wasserstein-1 distance to the exact quantiles, order 2 heun, grid "
        "log-snr; floor: fresh data; wrong start: 0.7 x + 0.3",
        "denoiser": "exact, float64",
    }
    write_result("choosing", protocol, rows, [])
    draw_schedules()
    draw_grids()
    draw_orders(rows)
    draw_rho(rows)


if __name__ == "__main__":
    main()
