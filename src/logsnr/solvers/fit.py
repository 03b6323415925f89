"""A solver of free numbers: its levels and, a step, the factors of the sample and of the last clean estimates.

``roll`` fits the factors step by step by ridge regression while the solver runs on its own states, so that later steps
repair earlier ones. Everything is at unit total variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.grids import DATA
from logsnr.schedules.schedule import Schedule
from logsnr.solvers.reference import Model, Reference
from logsnr.solvers.table import ESTIMATES, SolverTable
from logsnr.solvers.weights import Array, step_weights

Run = tuple[Tensor, list[Tensor]]
"""Samples (n, d), and the features (2 to 6, n, d) of every step that led to them."""


@dataclass(frozen=True)
class Fit:
    """Levels, noisiest first, and coefficients (steps, 6): z_next = c0 z + c1 x0 + c2 x0' + ... + c5 x0''''."""

    levels: tuple[Level, ...]
    coefficients: Array

    def run(self, model: Model, rows: Tensor, z: Tensor, earlier: Tensor | None = None, first: int = 0) -> Run:
        """From states z at step ``first`` to samples; ``earlier`` holds the clean estimates before it, newest first."""
        visits = []
        for step in range(first, len(self.levels)):
            features = visit(model, z, self.levels[step], rows, earlier)
            visits.append(features)
            z, earlier = combine(features, self.coefficients[step]), kept(features, self.levels[step])
        return z, visits


def to_table(fit: Fit) -> SolverTable:
    """The fit at y = x / alpha, as tables keep it."""
    levels, rows = [*fit.levels, DATA], []
    for step, (here, there) in enumerate(pairwise(levels)):
        linear, *values = (fit.coefficients[step] / there.alpha).tolist()
        rows.append((linear * here.alpha, *values[: step + 1]))
    return SolverTable(**grid_of(fit.levels), coefficients=tuple(rows))


def of_table(table: SolverTable, schedule: Schedule) -> Fit:
    """The numbers of a table at unit total variance; ``schedule`` has it.

    Raises:
        InputError: the table holds an analytic solver.
    """
    if table.analytic:
        raise InputError(
            "the solver table holds an analytic solver and no coefficients to move: calibrate with more rounds"
        )
    levels, rows = table.levels(schedule), []
    for (here, there), (linear, *values) in zip(pairwise(levels), table.coefficients, strict=True):
        row = np.array([linear / here.alpha if here.alpha else 0.0, *values]) * there.alpha
        rows.append(np.pad(row, (0, 1 + ESTIMATES - len(row))))
    return Fit(tuple(levels[:-1]), np.stack(rows))


def grid_of(levels: Sequence[Level]) -> dict[str, Any]:
    """Levels without the last, clean one, as tables keep them."""
    infinite = levels[0].alpha == 0
    return {"log_snr": tuple(level.log_snr for level in levels[infinite:]), "infinite_start": bool(infinite)}


def visit(model: Model, z: Tensor, level: Level, rows: Tensor, earlier: Tensor | None) -> Tensor:
    """What a step is computed from: the state, its clean estimate, and earlier ones."""
    current = torch.stack([z, model(z, level, rows)])
    return current if earlier is None else torch.cat([current, earlier])


def kept(features: Tensor, level: Level) -> Tensor | None:
    """The clean estimates that the next step reads; infinite noise leaves none."""
    return features[1:ESTIMATES] if level.alpha else None


def combine(features: Tensor, coefficients: Array) -> Tensor:
    """The next state."""
    return torch.einsum("f,fnd->nd", torch.from_numpy(coefficients[: len(features)]).to(features), features)


def errors(samples: Tensor, reference: Reference) -> Tensor:
    """Root mean square distance (n,) of each sample to the reference's, over the deviation of the data."""
    return (samples - reference.final).square().mean(1).sqrt() / reference.data_std


def roll(
    model: Model, reference: Reference, nodes: Sequence[int], fitted: int, ridge: float, rows: Tensor
) -> tuple[Fit, Run]:
    """Run the solver on its own states through ``nodes`` and fit each step on the first ``fitted`` trajectories."""
    z, earlier, coefficients, visits = reference.states[0], None, [], []
    levels = tuple(reference.levels[node] for node in nodes)
    for place, here in enumerate(levels):
        last = place + 1 == len(levels)
        features = visit(model, z, here, rows, earlier)
        visits.append(features)
        target = reference.final if last else reference.states[nodes[place + 1]]
        seen = [here, *levels[:place][::-1]][: len(features) - 1]
        found = _prior(here, DATA if last else levels[place + 1], seen)
        if here.alpha:
            found = _ridge(features[:, :fitted].flatten(1), target[:fitted].flatten(), found, ridge)
        coefficients.append(np.pad(found, (0, 1 + ESTIMATES - len(found))))
        z, earlier = combine(features, coefficients[-1]), kept(features, here)
    return Fit(levels, np.stack(coefficients)), (z, visits)


def _prior(here: Level, there: Level, levels: Sequence[Level]) -> Array:
    """The analytic step of order 2, or the clean estimate itself at the end: (1 + estimates,)."""
    found = step_weights(here, there, tuple(levels[:2]))
    return np.pad(np.array([found.linear, *found.values]), (0, len(levels) - len(found.values)))


def _ridge(features: Tensor, target: Tensor, prior: Array, ridge: float) -> Array:
    """Coefficients near the prior that explain the target: features (f, m), target (m,), in float64."""
    inputs = features.double().cpu().numpy()
    scale = np.sqrt((inputs**2).mean(1)).clip(1e-12)
    inputs = inputs / scale[:, None]
    missing = target.double().cpu().numpy() - (prior * scale) @ inputs
    gram = inputs @ inputs.T / inputs.shape[1] + ridge * np.eye(len(inputs))
    return prior + np.linalg.solve(gram, inputs @ missing / inputs.shape[1]) / scale
