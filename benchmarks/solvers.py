"""Solvers at a few network calls: ours, calibrated and not, against diffusers' on the same levels.

    python benchmarks/solvers.py --part fashion 5 [--part ring2 5 ...]   a problem at a number of calls, three seeds
    python benchmarks/solvers.py                                        every part that has no result yet

Parts are kept in results/solvers/, so that the whole (hours) can be done in pieces. Paired error: root mean square
distance of a sample to the fine solution from the same noise, over the data's standard deviation. Each peer runs on
every grid and keeps the one with the least mean error on a selection set; errors are then taken on unseen noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from peers import OPTIMISED, PEERS, Peer
from problems import PROBLEMS, Problem
from record import RESULTS
from torch import Tensor

from logsnr.core.artifact import write_json
from logsnr.core.random import generator, sample_noise
from logsnr.core.types import Level
from logsnr.information.curve import MMSECurve, mmse_curve, squared_error
from logsnr.schedules.grids import DATA, beta_quantiles, entropic, karras, tangent, uniform_log_snr
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.calibrate import calibrate_denoiser
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plan import plan_nodes
from logsnr.solvers.reference import Model, Reference, make_reference

CALLS = (3, 4, 5, 8, 10, 20)
SEEDS = (0, 1, 2)
NUM_TEST, NUM_SELECTION, FINE = 512, 64, 250
SEARCHED = 40
QUICK = CalibrateConfig(num_fit=16, num_selection=8, num_gate=8, reference_steps=40, grids=("planned",), rivals=1)
FULL = CalibrateConfig(
    num_fit=128,
    num_selection=64,
    num_gate=64,
    reference_steps=160,
    grids=("planned", "log-snr", "karras", "tangent"),
    ridges=(1e-5, 1e-8, 1e-3),
    rivals=5,
)


def noise_of(problem: Problem, first: int, count: int) -> Tensor:
    """Unit start noise (count, d) of its own seeds; mixtures in float64."""
    noise = sample_noise(range(first, first + count), problem.shape).flatten(1)
    return noise.double() if len(problem.shape) == 1 else noise


def grids_of(
    problem: Problem, model: Model, calls: int, reference: Reference, error: MMSECurve
) -> dict[str, list[Level]]:
    """Every grid that a solver may visit, by name."""
    unit, std = model.unit, reference.data_std
    low, high = (float(unit.t_of(torch.tensor(-2 * np.log(s), dtype=torch.float64))) for s in (0.02, 0.05))
    first = {"start": 1.0}
    made = {
        "log-snr to 0.02": uniform_log_snr(unit, calls, end=low, **first),
        "log-snr to 0.05": uniform_log_snr(unit, calls, end=high, **first),
        "karras to 0.02": karras(unit, calls, end=low, **first),
        "beta to 0.02": beta_quantiles(unit, calls, end=low, **first),
        **{f"tangent {share:g}": tangent(unit, calls, data_std=std * share) for share in (1.0, 0.5, 0.25)},
        **{
            f"entropic {power:g} {tilt:g}": entropic(unit, calls, error.per_dimension, power=power, tilt=tilt)
            for power in (0.25, 0.5)
            for tilt in (0.0, 0.25)
        },
        "planned": [*(reference.levels[node] for node in plan_nodes(reference, calls, NUM_SELECTION, 1e-5)), DATA],
    }
    return {name: grid for name, grid in made.items() if grid[0].log_snr < grid[1].log_snr}


def errors_of(found: Tensor, reference: Reference) -> np.ndarray:
    """Root mean square error of each trajectory over the data's standard deviation."""
    errors = (found - reference.final).square().mean(1).sqrt() / reference.data_std
    return errors.nan_to_num(nan=1e3, posinf=1e3).clamp_max(1e3).double().numpy()


def exponential(solver: Exponential) -> Callable[[Model, Tensor, Sequence[Level], Tensor], Tensor]:
    """Our analytic solver in the peers' form."""

    def run(model: Model, z: Tensor, levels: Sequence[Level], rows: Tensor) -> Tensor:
        memory = None
        for here, there in pairwise(levels):
            z, memory = solver.advance(z, model(z, here, rows), here, there, None, memory)
        return z

    return run


def search_grid(peer: Peer, model: Model, grid: list[Level], seen: Reference, rows: Tensor) -> list[Level]:
    """A grid for one peer: random moves of one level, kept when the mean error on the selection set falls."""
    draws, best = np.random.default_rng(0), list(grid)
    error = errors_of(peer.run(model, seen.states[0], best, rows), seen).mean()
    for trial in range(SEARCHED):
        if len(best) < 3:
            break
        values = np.array([level.log_snr for level in best[:-1]])
        place = int(draws.integers(1, len(values)))
        low = values[place - 1]
        high = values[place + 1] if place + 1 < len(values) else seen.levels[-1].log_snr + 1.0
        width = (1 - trial / SEARCHED) * 0.6 + 0.05
        values[place] = np.clip(values[place] + draws.normal() * width, low + 0.02, max(high - 0.02, low + 0.02))
        moved = [*levels_of(model.unit, values.tolist()), DATA]
        found = errors_of(peer.run(model, seen.states[0], moved, rows), seen).mean()
        if found < error:
            best, error = moved, found
    return best


def run_seed(problem: Problem, calls: int, seed: int) -> dict[str, Any]:
    """Errors (NUM_TEST,) of every method at its chosen grid, with its cost."""
    first = 10_000_000 + 1_000_000 * seed
    test = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(range(first, first + NUM_TEST)))
    rows = torch.arange(NUM_TEST)
    fine = make_reference(test, noise_of(problem, first, NUM_TEST), rows, FINE)
    chosen = range(first + 500_000, first + 500_000 + NUM_SELECTION)
    model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(chosen))
    some = torch.arange(NUM_SELECTION)
    seen = make_reference(model, noise_of(problem, chosen.start, NUM_SELECTION), some, FULL.reference_steps)
    error = denoiser_error(problem, seen, chosen)
    found: dict[str, Any] = {}
    for peer in [*PEERS, *default_solvers()]:
        grids = grids_of(problem, model, peer.levels(calls), seen, error)
        scores = {
            name: float(errors_of(peer.run(model, seen.states[0], grid, some), seen).mean())
            for name, grid in grids.items()
        }
        best = min(scores, key=lambda name: scores[name])
        grid = grids[best]
        found[peer.name] = entry(errors_of(peer.run(test, fine.states[0], grid, rows), fine), best)
        if peer.name in OPTIMISED:
            own = search_grid(peer, model, grid, seen, some)
            found[f"{peer.name}, own grid"] = entry(
                errors_of(peer.run(test, fine.states[0], own, rows), fine), "searched"
            )
    default = exponential(Exponential(2, corrector=True))
    grid = tangent(model.unit, calls, data_std=seen.data_std)
    found["ours, default"] = entry(errors_of(default(test, fine.states[0], grid, rows), fine), "tangent 1")
    for name, config in (("ours, calibrated", FULL), ("ours, calibrated quickly", QUICK)):
        found[name] = calibrated(problem, config, calls, first + 700_000, test, fine)
    return found


def default_solvers() -> list[Peer]:
    """Our analytic solvers on their best grid, for the record."""
    return [Peer(f"ours, order {k} corrected", exponential(Exponential(k, corrector=True))) for k in (2, 3)]


def calibrated(
    problem: Problem, config: CalibrateConfig, calls: int, first: int, test: Model, fine: Reference
) -> dict[str, Any]:
    """Our calibrated solver, from seeds of its own."""
    config = CalibrateConfig(**{**config.__dict__, "steps": calls})
    total = config.num_fit + config.num_selection + config.num_gate
    start = time.perf_counter()
    table, record = calibrate_denoiser(
        problem.denoiser,
        problem.schedule,
        noise_of(problem, first, total).reshape(total, *problem.shape),
        cond=problem.cond(range(first, first + total)),
        config=config,
    )
    seconds = time.perf_counter() - start
    levels, solver, z, memory = table.levels(test.unit), table.solver(), fine.states[0], None
    rows = torch.arange(len(z))
    for here, there in pairwise(levels):
        z, memory = solver.advance(z, test(z, here, rows), here, there, None, memory)
    cost = {"network_evaluations": record["network_evaluations"], "seconds": round(seconds, 1)}
    return {**entry(errors_of(z, fine), record["winner"]), **cost, "grid_only": record["grid_only"]}


def denoiser_error(problem: Problem, seen: Reference, rows: range) -> MMSECurve:
    """The denoiser's error on its own samples, for the entropic grids."""
    x = seen.final.reshape(-1, *problem.shape)
    points, cond = np.linspace(-8, 8, 33).tolist(), problem.cond(rows)
    noise = torch.randn(x.shape, generator=generator(0, "entropic"), dtype=x.dtype)
    errors = [squared_error(problem.denoiser, x, noise, level, cond) for level in levels_of(problem.schedule, points)]
    return mmse_curve(points, errors, x[0].numel())


def entry(errors: np.ndarray, grid: str) -> dict[str, Any]:
    """What is kept of one method on one seed."""
    return {"errors": errors, "grid": grid}


def ratio_interval(ours: list[np.ndarray], theirs: list[np.ndarray], statistic: Any) -> tuple[float, float, float]:
    """The ratio of a statistic over all trajectories, with a 95 % bootstrap interval: seeds, then noises, paired."""
    draws, values = np.random.default_rng(0), []
    for _ in range(1000):
        rows = []
        for seed in draws.integers(0, len(ours), len(ours)):
            which = draws.integers(0, len(ours[seed]), len(ours[seed]))
            rows.append((ours[seed][which], theirs[seed][which]))
        mine, other = (np.concatenate(column) for column in zip(*rows, strict=True))
        values.append(statistic(mine) / statistic(other))
    whole = statistic(np.concatenate(ours)) / statistic(np.concatenate(theirs))
    return float(whole), float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


@torch.no_grad()
def run_part(name: str, calls: int) -> None:
    """One problem at one number of calls: its rows go into results/solvers/."""
    problem, start = PROBLEMS[name](), time.monotonic()
    seeds = [run_seed(problem, calls, seed) for seed in SEEDS]
    rows = []
    for method in seeds[0]:
        errors = [seed[method]["errors"] for seed in seeds]
        joined = np.concatenate(errors)
        row: dict[str, Any] = {
            "problem": problem.name,
            "calls": calls,
            "method": method,
            "mean": float(joined.mean()),
            "median": float(np.median(joined)),
            "rms": float(np.sqrt((joined**2).mean())),
            "grids": [seed[method]["grid"] for seed in seeds],
        }
        row |= {
            key: [seed[method][key] for seed in seeds]
            for key in ("network_evaluations", "seconds", "grid_only")
            if key in seeds[0][method]
        }
        rows.append(row)
    ratios = compare(seeds)
    path = RESULTS / "solvers" / f"{name}-{calls}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"rows": rows, "ratios": ratios, "seconds": round(time.monotonic() - start, 1)})
    print(f"{name} at {calls} calls: {json.dumps(ratios)}", flush=True)


def compare(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours over the best peer and over DPM++2M, by mean and by median."""
    theirs = [name for name in seeds[0] if not name.startswith("ours")]
    pooled = {name: np.concatenate([seed[name]["errors"] for seed in seeds]) for name in theirs}
    found: dict[str, Any] = {}
    for label, statistic in (("mean", np.mean), ("median", np.median)):
        best = min(pooled, key=lambda name: float(statistic(pooled[name])))
        two = min((n for n in theirs if n.startswith("DPM++2M")), key=lambda name: float(statistic(pooled[name])))
        for ours in ("ours, calibrated", "ours, calibrated quickly", "ours, default"):
            for against, name in (("best peer", best), ("DPM++2M", two)):
                mine, other = ([seed[method]["errors"] for seed in seeds] for method in (ours, name))
                found[f"{ours} / {against}, {label}"] = [name, *ratio_interval(mine, other, statistic)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs=2, action="append", metavar=("PROBLEM", "CALLS"))
    chosen = parser.parse_args().part
    parts = [(name, int(calls)) for name, calls in chosen] if chosen else [(n, c) for n in PROBLEMS for c in CALLS]
    for name, calls in parts:
        if chosen or not (RESULTS / "solvers" / f"{name}-{calls}.json").exists():
            run_part(name, calls)


if __name__ == "__main__":
    main()
