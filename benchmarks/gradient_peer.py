"""A peer that learns its solver by gradients through the network, in the manner of S4S (2502.17423) and DyWeight.

    python benchmarks/gradient_peer.py [--calls 5] [--seeds 0 1 2]

The same numbers as in our tables (levels, and up to six coefficients a step), from the best of the analytic starts,
trained by Adam on the mean error of the sample; the best of its checkpoints on the selection set is tested on the
noises of solvers.py. Beside it, on the same noises, our calibration at less than a tenth of its price, in which a
backward pass counts as two evaluations, and within 3,000 evaluations.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from problems import Problem, fashion
from record import RESULTS
from solvers import SEEDS, Trial, errors_of, keep, kept, noise_of, quick, ratio_interval
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.models.pipeline import denoiser_of
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.fit import Fit, roll
from logsnr.solvers.plan import plan_nodes, snap_nodes
from logsnr.solvers.reference import Model, Reference, make_reference
from logsnr.solvers.table import ESTIMATES

NUM_FIT, NUM_SELECTION, STEPS, BATCH, EVERY = 128, 64, 300, 32, 20
RATES = {"coefficients": 5e-3, "log_snr": 2e-2}
LEARNED = "gradient-trained"


class Student(torch.nn.Module):
    """The solver's numbers as parameters, and the network as a differentiable function of state and log-SNR."""

    def __init__(self, problem: Problem, fit: Fit, reference: Reference):
        super().__init__()
        pipe = logsnr.load("fashion")
        pipe.unet.requires_grad_(False)
        self.denoiser = denoiser_of(pipe)
        self.network = self.denoiser.network
        if self.denoiser.kind != "eps":
            raise SystemExit(f"the gradient-trained peer reads predicted noise, not {self.denoiser.kind}")
        self.shape, low = problem.shape, reference.levels[0].log_snr
        # the network's time as a piecewise linear function of log-SNR, so that levels have gradients
        self.knots = torch.linspace(low, reference.levels[-1].log_snr, 4000, dtype=torch.float64)
        levels = levels_of(self.denoiser.schedule, self.knots.tolist())
        self.times = torch.tensor([self.denoiser.timestep_of(level) for level in levels])
        self.log_snr = torch.nn.Parameter(torch.tensor([level.log_snr for level in fit.levels], dtype=torch.float64))
        self.coefficients = torch.nn.Parameter(torch.from_numpy(fit.coefficients).clone())

    def forward(self, z: Tensor, cond: Any) -> Tensor:
        """Samples (n, d) from unit noise z (n, d)."""
        estimates: list[Tensor] = []
        for step, log_snr in enumerate(self.log_snr):
            log_snr = log_snr.clamp(self.knots[0], self.knots[-1])
            alpha, sigma = log_snr.sigmoid().sqrt().float(), (-log_snr).sigmoid().sqrt().float()
            noise = self.network(z.reshape(-1, *self.shape), self._time(log_snr), **cond.values).flatten(1)
            estimates = [(z - sigma * noise) / alpha, *estimates][:ESTIMATES]
            features = torch.stack([z, *estimates])
            z = torch.einsum("f,fnd->nd", self.coefficients[step, : len(features)].float(), features)
        return z

    def _time(self, log_snr: Tensor) -> Tensor:
        place = int(torch.searchsorted(self.knots, log_snr.detach()).clamp(1, len(self.knots) - 1))
        share = (log_snr - self.knots[place - 1]) / (self.knots[place] - self.knots[place - 1])
        return self.times[place - 1] + share.float() * (self.times[place] - self.times[place - 1])

    def fit(self, model: Model) -> Fit:
        """The numbers as they are now."""
        low, high = self.knots[0], self.knots[-1]
        levels = levels_of(model.unit, self.log_snr.detach().clamp(low, high).tolist())
        return Fit(tuple(levels), self.coefficients.detach().numpy().copy())


def start(model: Model, reference: Reference, calls: int, rows: Tensor) -> Fit:
    """The analytic solver on the grid, of three, that is best on the selection set."""
    grids = [snap_nodes(grid, reference, calls) for grid in ("log-snr", "tangent")]
    fits = []
    for nodes in [*grids, plan_nodes(reference, calls, NUM_FIT, 1e-5)]:
        fit, (final, _) = roll(model, reference, nodes, NUM_FIT, 1e3, rows)  # so stiff a ridge leaves it analytic
        fits.append((float(errors_of(final, reference)[NUM_FIT:].mean()), fit))
    return min(fits, key=lambda entry: entry[0])[1]


def train(problem: Problem, first: int, calls: int) -> tuple[Fit, dict[str, Any]]:
    """The trained solver and its cost."""
    begun, total = time.perf_counter(), NUM_FIT + NUM_SELECTION
    model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(range(first, first + total)))
    rows = torch.arange(total)
    with torch.no_grad():
        reference = make_reference(model, noise_of(problem, first, total), rows, 160)
        fit = start(model, reference, calls, rows)
    student = Student(problem, fit, reference)
    optimiser = torch.optim.Adam([{"params": [getattr(student, name)], "lr": rate} for name, rate in RATES.items()])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    draws, best = torch.Generator().manual_seed(first), (np.inf, fit)
    held = rows[NUM_FIT:]
    seen = replace(reference, states=reference.states[:, NUM_FIT:], estimates=reference.estimates[:, NUM_FIT:])
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                now = student.fit(model)
                found = now.run(model, held, seen.states[0])[0]
            best = min(best, (float(errors_of(found, seen).mean()), now), key=lambda entry: entry[0])
        if step == STEPS:
            break
        chosen = torch.randperm(NUM_FIT, generator=draws)[:BATCH]
        made = student(reference.states[0][chosen], model.given(chosen))
        loss = (made - reference.final[chosen]).square().mean(1).sqrt().mean() / reference.data_std
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    price = model.evaluations + 3 * STEPS * BATCH * calls
    return best[1], {"evaluation_equivalents": price, "seconds": round(time.perf_counter() - begun, 1)}


def tenth(calls: int) -> CalibrateConfig:
    """Our calibration at less than a tenth of the gradient-trained solver's price, at 5 calls."""
    return CalibrateConfig(
        steps=calls,
        num_fit=32,
        num_selection=24,
        num_gate=16,
        reference_steps=80,
        grids=("planned",),
        rounds=4,
        rivals=2,
    )


def run(problem: Problem, seed: int, calls: int) -> dict[str, Any]:
    """Errors and costs of one seed: the gradient-trained solver, and ours at two prices."""
    with torch.no_grad():
        trial = Trial(problem, seed)
    fit, cost = train(problem, trial.first + 700_000, calls)
    with torch.no_grad():
        test, fine = trial.tested
        made = fit.run(test, torch.arange(len(fine.final)), fine.states[0])[0]
        found = {LEARNED: {"errors": errors_of(made, fine), **cost}}
        for name, config in ((", a tenth of the price", tenth), (" quickly", quick)):
            row, _ = trial.calibrated(config(calls))
            price = row.pop("network_evaluations")
            found[f"ours, calibrated{name}"] = {
                "errors": row["errors"],
                "evaluation_equivalents": price,
                "seconds": row["seconds"],
            }
    return found


def summarise(calls: int) -> None:
    """The table over the seeds that were run, with ours over the gradient-trained solver, into results/solvers/."""
    paths = {seed: kept("fashion", calls, seed, "-gradient") for seed in SEEDS}
    seeds = [json.loads(path.read_text()) for path in paths.values() if path.exists()]
    rows, ratios = [], {}
    theirs = [np.array(seed[LEARNED]["errors"]) for seed in seeds]
    for method in seeds[0]:
        errors = [np.array(seed[method]["errors"]) for seed in seeds]
        joined = np.concatenate(errors)
        costs = {key: [seed[method][key] for seed in seeds] for key in ("evaluation_equivalents", "seconds")}
        figures = {"mean": float(joined.mean()), "median": float(np.median(joined)), "seeds": len(seeds)}
        rows.append({"problem": "fashion, guidance 1", "calls": calls, "method": method, **figures, **costs})
        if method != LEARNED:
            ratios[f"{method} / {LEARNED}, mean"] = [LEARNED, *ratio_interval(errors, theirs, np.mean)]
    write_json(RESULTS / "solvers" / f"fashion-gradient-{calls}.json", {"rows": rows, "ratios": ratios})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", nargs="+", type=int, default=[5])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    chosen = parser.parse_args()
    problem = fashion(1.0)
    for calls in chosen.calls:
        for seed in chosen.seeds:
            keep("fashion", calls, seed, "-gradient", lambda seed=seed, calls=calls: run(problem, seed, calls))
        summarise(calls)


if __name__ == "__main__":
    main()
