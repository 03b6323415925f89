"""A peer that learns its solver by gradients through the network, in the manner of S4S (2502.17423) and DyWeight.

    python benchmarks/gradient_peer.py [--calls 5] [--seeds 0 1 2]

The same numbers as in our tables (levels, and up to six coefficients a step), from the same kind of start, trained by
Adam on the mean error of the sample; the best of its checkpoints on the selection set is tested on the noises of
``solvers.py``, whose results it joins. Its price counts a backward pass as two evaluations.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from problems import Problem, fashion
from solvers import SEEDS, Trial, errors_of, kept, noise_of, run_problem
from torch import Tensor

import logsnr
from logsnr.core.artifact import write_json
from logsnr.models.pipeline import denoiser_of
from logsnr.schedules.schedule import levels_of
from logsnr.solvers.fit import Fit, roll
from logsnr.solvers.plan import snap_nodes
from logsnr.solvers.reference import Model, Reference, make_reference
from logsnr.solvers.table import ESTIMATES

NUM_FIT, NUM_SELECTION, STEPS, BATCH, EVERY, RATE = 128, 64, 300, 32, 20, 5e-3


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


def train(problem: Problem, first: int, calls: int) -> tuple[Fit, dict[str, Any]]:
    """The trained solver and its cost."""
    start, total = time.perf_counter(), NUM_FIT + NUM_SELECTION
    model = Model(problem.denoiser, problem.schedule, problem.shape, problem.cond(range(first, first + total)))
    rows = torch.arange(total)
    with torch.no_grad():
        reference = make_reference(model, noise_of(problem, first, total), rows, 160)
        nodes = snap_nodes("log-snr", reference, calls)
        fit, _ = roll(model, reference, nodes, NUM_FIT, 1e3, rows)  # so stiff a ridge leaves the analytic solver
    student = Student(problem, fit, reference)
    optimiser = torch.optim.Adam([student.log_snr, student.coefficients], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    draws, best = torch.Generator().manual_seed(first), (np.inf, fit)
    held = rows[NUM_FIT:]
    seen = replace(reference, states=reference.states[:, NUM_FIT:], estimates=reference.estimates[:, NUM_FIT:])
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                found = student.fit(model).run(model, held, seen.states[0])[0]
            best = min(best, (float(errors_of(found, seen).mean()), student.fit(model)), key=lambda entry: entry[0])
        chosen = torch.randperm(NUM_FIT, generator=draws)[:BATCH]
        made = student(reference.states[0][chosen], model._given(chosen))
        loss = (made - reference.final[chosen]).square().mean(1).sqrt().mean() / reference.data_std
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    price = model.evaluations + 3 * (STEPS + 1) * BATCH * calls
    return best[1], {"network_evaluations": price, "seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", nargs="+", type=int, default=[5])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    chosen = parser.parse_args()
    problem = fashion(1.0)
    for seed in chosen.seeds:
        with torch.no_grad():
            trial = Trial(problem, seed)
        for calls in chosen.calls:
            fit, cost = train(problem, trial.first + 700_000, calls)
            with torch.no_grad():
                test, fine = trial.tested
                made = fit.run(test, torch.arange(len(fine.final)), fine.states[0])[0]
            errors = errors_of(made, fine)
            write_json(
                kept("fashion", calls, seed, "-gradient"),
                {"gradient-trained": {"errors": errors.tolist(), "grid": "trained", **cost}},
            )
            print(f"{calls} calls, seed {seed}: {errors.mean():.4f}, {cost}", flush=True)
    run_problem("fashion", chosen.calls, [])


if __name__ == "__main__":
    main()
