"""Solvers at a few network calls: ours, calibrated and not, against diffusers' on the same levels.

    python benchmarks/solvers.py [--problem fashion ...] [--calls 5 8 ...] [--seeds 0 1 2]

What is done is kept in runs/solvers/, so that the whole (hours) can be done in pieces and by several processes; a
problem at a number of calls is written to results/solvers/ when all its seeds are there. Paired error: root mean square
distance of a sample to the fine solution from the same noise, over the data's standard deviation. Each peer runs on
every grid and keeps the one with the least mean error on a selection set; errors are then taken on unseen noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import OPTIMISED, PEERS, Peer
from problems import PROBLEMS, Problem
from record import RESULTS
from safetensors.torch import load_file, save_file
from torch import Tensor

from logsnr.core.artifact import write_json
from logsnr.core.random import generator, sample_noise
from logsnr.core.types import Level
from logsnr.information.curve import MMSECurve, mmse_curve, squared_error
from logsnr.schedules.grids import DATA, beta_quantiles, early_log_snr, entropic, karras, tangent, uniform_log_snr
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.calibrate import calibrate_denoiser
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plan import plan_nodes
from logsnr.solvers.price import within
from logsnr.solvers.reference import Model, Reference, make_reference
from logsnr.solvers.table import SolverTable, Tabulated

CALLS = (3, 4, 5, 8, 10, 20)
SEEDS = (0, 1, 2)
NUM_TEST, NUM_SELECTION, FINE, CHOOSING = 512, 64, 250, 160
SEARCHED = 40
PARTS = ("", "-default", "-quick")
Run = Callable[[Model, Tensor, Sequence[Level], Tensor], Tensor]


def noise_of(problem: Problem, first: int, count: int) -> Tensor:
    """Unit start noise (count, d) of its own seeds; mixtures in float64."""
    noise = sample_noise(range(first, first + count), problem.shape).flatten(1)
    return noise.double() if len(problem.shape) == 1 else noise


def grids_of(
    problem: Problem, model: Model, calls: int, reference: Reference, error: MMSECurve
) -> dict[str, list[Level]]:
    """Every grid that a solver may visit, by name."""
    unit, std = model.unit, reference.data_std
    low, early, high = (float(unit.t_of(torch.tensor(-2 * np.log(s), dtype=torch.float64))) for s in (0.02, 0.03, 0.05))
    first = {"start": 1.0}
    made = {
        "log-snr to 0.02": uniform_log_snr(unit, calls, end=low, **first),
        "log-snr to 0.05": uniform_log_snr(unit, calls, end=high, **first),
        "karras to 0.02": karras(unit, calls, end=low, **first),
        "karras to 0.03": karras(unit, calls, end=early, **first),
        "log-snr to 0.6 / calls": early_log_snr(unit, calls),
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


def exponential(solver: Exponential | Tabulated) -> Run:
    """Our solver in the peers' form."""

    def run(model: Model, z: Tensor, levels: Sequence[Level], rows: Tensor) -> Tensor:
        memory = None
        for here, there in pairwise(levels):
            z, memory = solver.advance(z, model(z, here, rows), here, there, None, memory)
        return z

    return run


class Trial:
    """One seed of a problem: fine test trajectories, and what grids are chosen on; both serve every number of calls."""

    def __init__(self, problem: Problem, seed: int):
        self.problem, self.first = problem, 30_000_000 + 1_000_000 * seed
        self.model, self.seen = self._trajectories(self.first + 500_000, NUM_SELECTION, CHOOSING)
        self.error = denoiser_error(problem, self.seen, self.first + 500_000)

    @cached_property
    def tested(self) -> tuple[Model, Reference]:
        """The unseen noises with their fine solution, which is kept: it takes minutes."""
        path = kept(self.problem.name, FINE, self.first).with_suffix(".safetensors")
        rows = range(self.first, self.first + NUM_TEST)
        if not path.exists():
            found = self._trajectories(self.first, NUM_TEST, FINE)[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"states": found.states[:1].contiguous(), "estimates": found.estimates[-1:].contiguous()}, path)
        problem = self.problem
        model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(rows))
        return model, Reference([], **load_file(path))

    def _trajectories(self, first: int, count: int, steps: int) -> tuple[Model, Reference]:
        problem, rows = self.problem, range(first, first + count)
        model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(rows))
        return model, make_reference(model, noise_of(problem, first, count), torch.arange(count), steps)

    def chosen_grid(self, peer: Peer, calls: int, ours: list[Level]) -> tuple[str, list[Level]]:
        """The grid with the least mean error of a peer on the selection set, our calibrated levels among them."""
        grids = grids_of(self.problem, self.model, peer.levels(calls), self.seen, self.error)
        grids |= {"calibrated": ours} if len(ours) == peer.levels(calls) + 1 else {}
        scores = {name: self.selection_error(peer, grid) for name, grid in grids.items()}
        best = min(scores, key=lambda name: scores[name])
        return best, grids[best]

    def selection_error(self, peer: Peer, grid: Sequence[Level]) -> float:
        """The mean error of a peer on the selection set."""
        found = peer.run(self.model, self.seen.states[0], grid, torch.arange(NUM_SELECTION))
        return float(errors_of(found, self.seen).mean())

    def test_errors(self, run: Run, grid: Sequence[Level]) -> np.ndarray:
        """Errors (NUM_TEST,) on the unseen noises."""
        test, fine = self.tested
        return errors_of(run(test, fine.states[0], grid, torch.arange(NUM_TEST)), fine)

    def run(self, calls: int) -> dict[str, Any]:
        """Errors of every method at its chosen grid, with its cost."""
        found: dict[str, Any] = {}
        found["ours, calibrated"], levels = self.calibrated(full(calls))
        for peer in [*PEERS, *our_analytic()]:
            name, grid = self.chosen_grid(peer, calls, levels)
            found[peer.name] = {"errors": self.test_errors(peer.run, grid), "grid": name}
            if peer.name in OPTIMISED:
                own = self.searched_grid(peer, grid)
                found[f"{peer.name}, own grid"] = {"errors": self.test_errors(peer.run, own), "grid": "searched"}
        return found

    def quickly(self, calls: int) -> dict[str, Any]:
        """Our solver calibrated within 3,000 evaluations."""
        return {"ours, calibrated quickly": self.calibrated(quick(calls))[0]}

    def default(self, calls: int) -> dict[str, Any]:
        """Our uncalibrated default, and on its grid the peers that it is compared with."""
        grid = early_log_snr(self.model.unit, calls)
        rivals = {f"{peer.name}, early grid": peer.run for peer in PEERS if peer.name in OPTIMISED}
        runs = {"ours, default": exponential(Exponential(3, corrector=True)), **rivals}
        return {name: {"errors": self.test_errors(run, grid), "grid": "log-snr-early"} for name, run in runs.items()}

    def searched_grid(
        self, peer: Peer, grid: list[Level], score: Callable[[list[Level]], float] | None = None
    ) -> list[Level]:
        """A grid for one peer: random moves of one level, kept when the score falls, by default selection_error."""
        score = score or (lambda levels: self.selection_error(peer, levels))
        draws, best = np.random.default_rng(0), list(grid)
        error = score(best)
        for trial in range(SEARCHED if len(grid) > 2 else 0):
            values = np.array([level.log_snr for level in best[:-1]])
            place = int(draws.integers(1, len(values)))
            low = values[place - 1]
            high = values[place + 1] if place + 1 < len(values) else self.seen.levels[-1].log_snr + 1.0
            width = (1 - trial / SEARCHED) * 0.6 + 0.05
            values[place] = np.clip(values[place] + draws.normal() * width, low + 0.02, max(high - 0.02, low + 0.02))
            moved = [*levels_of(self.model.unit, values.tolist()), DATA]
            found = score(moved)
            if found < error:
                best, error = moved, found
        return best

    def table(self, config: CalibrateConfig) -> tuple[SolverTable, dict[str, Any]]:
        """Our calibrated solver, from seeds of its own, and the record of how it was found."""
        problem, first = self.problem, self.first + 700_000
        total = config.num_fit + config.num_selection + config.num_gate
        return calibrate_denoiser(
            problem.denoiser,
            problem.schedule,
            noise_of(problem, first, total).reshape(total, *problem.shape),
            cond=problem.cond(range(first, first + total)),
            config=config,
        )

    def calibrated(self, config: CalibrateConfig) -> tuple[dict[str, Any], list[Level]]:
        """Errors of our calibrated solver with its cost, and its levels."""
        start = time.perf_counter()
        table, record = self.table(config)
        seconds, levels = round(time.perf_counter() - start, 1), table.levels(self.model.unit)
        kept = {key: record[key] for key in ("network_evaluations", "grid_only", "error_before")}
        errors = self.test_errors(exponential(table.solver()), levels)
        return {"errors": errors, "grid": record["winner"], "seconds": seconds, **kept}, levels


def full(calls: int) -> CalibrateConfig:
    """The calibration whose errors are the headlines; fewer rounds where a round is dear."""
    return CalibrateConfig(
        steps=calls,
        num_fit=96,
        num_selection=64,
        num_gate=48,
        reference_steps=160,
        grids=("planned", "log-snr", "tangent"),
        rounds=8 if calls <= 10 else 2,
        rivals=5,
    )


def quick(calls: int) -> CalibrateConfig:
    """The calibration within 3,000 evaluations without guidance."""
    return within(CalibrateConfig(steps=calls), 3000, guided=False)


def our_analytic() -> list[Peer]:
    """Our analytic solvers on their best grid, for the record."""
    return [Peer(f"ours, order {k} corrected", exponential(Exponential(k, corrector=True))) for k in (2, 3)]


def denoiser_error(problem: Problem, seen: Reference, first: int) -> MMSECurve:
    """The denoiser's error on its own samples, for the entropic grids."""
    x = seen.final.reshape(-1, *problem.shape)
    points, cond = np.linspace(-8, 8, 33).tolist(), problem.cond(range(first, first + len(x)))
    noise = torch.randn(x.shape, generator=generator(0, "entropic"), dtype=x.dtype)
    errors = [squared_error(problem.denoiser, x, noise, level, cond) for level in levels_of(problem.schedule, points)]
    return mmse_curve(points, errors, x[0].numel())


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
def run_problem(name: str, counts: Sequence[int], seeds: Sequence[int]) -> None:
    """A problem at several numbers of calls; each seed of each is kept, so that nothing is done twice."""
    problem = PROBLEMS[name]()
    for seed in seeds:
        trial = cache(lambda seed=seed: Trial(problem, seed))
        for calls in counts:
            keep(name, calls, seed, "", lambda calls=calls, trial=trial: trial().run(calls))
            keep(name, calls, seed, "-default", lambda calls=calls, trial=trial: trial().default(calls))
            keep(name, calls, seed, "-quick", lambda calls=calls, trial=trial: trial().quickly(calls))
    for calls in counts:
        if all(kept(name, calls, seed, what).exists() for seed in SEEDS for what in PARTS):
            summarise(name, problem.name, calls)


def keep(name: str, calls: int, seed: int, what: str, run: Callable[[], dict[str, Any]]) -> None:
    """Run one part and keep its errors, unless that was done before."""
    path, start = kept(name, calls, seed, what), time.monotonic()
    if path.exists():
        return
    found = run()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {key: {**row, "errors": row["errors"].tolist()} for key, row in found.items()})
    means = {key: round(float(row["errors"].mean()), 4) for key, row in found.items()}
    print(f"{path.stem}, {time.monotonic() - start:.0f} s: {json.dumps(means)}", flush=True)


def kept(name: str, calls: int, seed: int, what: str = "") -> Path:
    """Where the errors of one seed are kept, outside git; ``what`` is a part, or -gradient of gradient_peer.py."""
    return Path("runs") / "solvers" / f"{name}-{calls}-{seed}{what}.json"


def summarise(name: str, title: str, calls: int) -> None:
    """The table of one problem at one number of calls, over all seeds, into results/solvers/."""
    seeds: list[dict[str, Any]] = [{} for _ in SEEDS]
    for what in PARTS:
        paths = [kept(name, calls, seed, what) for seed in SEEDS]
        seeds = [seed | json.loads(path.read_text()) for seed, path in zip(seeds, paths, strict=True)]
    for seed in seeds:
        for row in seed.values():
            row["errors"] = np.array(row["errors"])
    rows = []
    for method in seeds[0]:
        joined = np.concatenate([seed[method]["errors"] for seed in seeds])
        others = [key for key in seeds[0][method] if key not in ("errors", "grid")]
        rows.append(
            {
                "problem": title,
                "calls": calls,
                "method": method,
                "mean": float(joined.mean()),
                "median": float(np.median(joined)),
                "rms": float(np.sqrt((joined**2).mean())),
                "grids": [seed[method]["grid"] for seed in seeds],
                **{key: [seed[method][key] for seed in seeds] for key in others},
            }
        )
    path = RESULTS / "solvers" / f"{name}-{calls}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"rows": rows, "ratios": compare(seeds)})


def compare(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours over the best scheduler and over DPM++2M, by mean and by median."""
    theirs = [name for name in seeds[0] if not name.startswith("ours")]
    pooled = {name: np.concatenate([seed[name]["errors"] for seed in seeds]) for name in theirs}
    found: dict[str, Any] = {}
    for label, statistic in (("mean", np.mean), ("median", np.median)):
        ranked = sorted(pooled, key=lambda name: float(statistic(pooled[name])))
        rivals = {"best peer": ranked[0], "DPM++2M": next(name for name in ranked if name.startswith("DPM++2M"))}
        for ours in (name for name in seeds[0] if name.startswith("ours")):
            for against, name in rivals.items():
                mine, other = ([seed[method]["errors"] for seed in seeds] for method in (ours, name))
                found[f"{ours} / {against}, {label}"] = [name, *ratio_interval(mine, other, statistic)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--calls", nargs="+", type=int, choices=CALLS, default=list(CALLS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    chosen = parser.parse_args()
    for name in chosen.problem:
        run_problem(name, chosen.calls, chosen.seeds)


if __name__ == "__main__":
    main()
