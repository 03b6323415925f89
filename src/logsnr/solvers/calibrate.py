"""Calibration: levels and step coefficients for one model and one number of steps, without gradients.

Fine reference trajectories are made once. The levels are chosen among their nodes by dynamic programming over local
errors, at no call; the coefficients are fitted by ridge regression while the solver runs on its own states, so that
later steps repair earlier ones; a held-out gate keeps the analytic solver wherever that is no worse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import sample_noise
from logsnr.core.types import Denoiser, Level
from logsnr.models.denoiser import Conditioning
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.schedules.grids import DATA
from logsnr.schedules.schedule import Schedule
from logsnr.solvers.config import CalibrateConfig
from logsnr.solvers.plan import plan_nodes, snap_nodes
from logsnr.solvers.reference import Model, Progress, Reference, make_reference
from logsnr.solvers.table import Analytic, SolverTable, Tabulated
from logsnr.solvers.weights import step_weights

ANALYTIC = (Analytic(2, "midpoint"), Analytic(2, "heun"), Analytic(2, "heun", True), Analytic(1), Analytic(3))


@dataclass(frozen=True)
class Fit:
    """A fitted solver: nodes of the reference, coefficients (steps, 4) at unit variance, and errors a trajectory."""

    nodes: tuple[int, ...]
    coefficients: np.ndarray
    errors: Tensor


def roll(model: Model, reference: Reference, nodes: Sequence[int], fitted: int, ridge: float, rows: Tensor) -> Fit:
    """Run the solver on its own states through ``nodes`` and fit each step on the first ``fitted`` trajectories."""
    z, history, coefficients = reference.states[0], [], []
    for place, node in enumerate(nodes):
        here = reference.levels[node]
        last = place + 1 == len(nodes)
        history = [(here, model(z, here, rows)), *history][:3]
        target = reference.final if last else reference.states[nodes[place + 1]]
        there = DATA if last else reference.levels[nodes[place + 1]]
        features = torch.stack([z, *(value for _, value in history)])
        prior = _prior(here, there, [level for level, _ in history], last)
        found = prior
        if here.alpha:
            found = _ridge(features[:, :fitted].flatten(1), target[:fitted].flatten(), prior, ridge)
        z = torch.einsum("f,fnd->nd", torch.from_numpy(found).to(z), features)
        coefficients.append(np.pad(found, (0, 4 - len(found))))
        history = history if here.alpha else []
    errors = (z - reference.final).square().mean(1).sqrt() / reference.data_std
    return Fit(tuple(nodes), np.stack(coefficients), errors)


def _prior(here: Level, there: Level, levels: Sequence[Level], last: bool) -> np.ndarray:
    """The analytic step of order 2, or the clean estimate itself at the end: (1 + evaluations,)."""
    found = step_weights(here, there, tuple(levels[:2]))
    values = found.values if not last else (1.0,)
    return np.pad(np.array([found.linear, *values]), (0, 1 + len(levels) - 1 - len(values)))


def _ridge(features: Tensor, target: Tensor, prior: np.ndarray, ridge: float) -> np.ndarray:
    """Coefficients near the prior that explain the target: features (f, m), target (m,), in float64."""
    inputs = features.double().numpy()
    scale = np.sqrt((inputs**2).mean(1))
    inputs = inputs / scale[:, None]
    missing = target.double().numpy() - (prior * scale) @ inputs
    gram = inputs @ inputs.T / inputs.shape[1] + ridge * np.eye(len(inputs))
    return prior + np.linalg.solve(gram, inputs @ missing / inputs.shape[1]) / scale


@torch.no_grad()
def calibrate_denoiser(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Tensor,
    *,
    cond: Conditioning | None = None,
    config: CalibrateConfig,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """A solver table for a denoiser, and the record of how it was found.

    ``noise`` (n, ...) is standard normal, one row a trajectory (and one of ``cond``): ``num_fit`` to fit, then
    ``num_selection`` to select, then ``num_gate`` to compare with the analytic solvers.

    Raises:
        InputError: the rows of noise are not as many as the configuration needs.
    """
    total = config.num_fit + config.num_selection + config.num_gate
    if len(noise) != total:
        raise InputError(f"calibration needs {total} start noises, not {len(noise)}: see CalibrateConfig")
    model, rows = Model(denoiser, schedule, noise.shape[1:], cond), torch.arange(total)
    reference = make_reference(model, noise.flatten(1), rows, config.reference_steps, progress)
    training = config.num_fit + config.num_selection
    seen = Reference(reference.levels, reference.states[:, :training], reference.estimates[:, :training])
    unseen = Reference(reference.levels, reference.states[:, training:], reference.estimates[:, training:])
    fits = _candidates(model, seen, config, progress)
    best = min(fits, key=lambda name: float(fits[name].errors[config.num_fit :].mean()))
    fit = fits[best]
    table = _table(fit, reference)
    gate = {"calibrated": _run(model, unseen, fit.nodes, Tabulated(table), rows[training:])}
    gate |= {
        name: _run(model, unseen, nodes, SolverTable(log_snr=(0.0,), analytic=solver).solver(), rows[training:])
        for name, nodes, solver in _rivals(seen, fit, config)
    }
    record = {name: float(errors.mean()) for name, errors in gate.items()}
    winner = min(record, key=lambda name: record[name])
    if winner != "calibrated":
        nodes, solver = next((n, s) for name, n, s in _rivals(seen, fit, config) if name == winner)
        table = SolverTable(**_grid_of(nodes, reference), analytic=solver)
    same_grid = [record[name] for name in record if name.endswith("/planned")]
    return table, {
        "gate": record,
        "winner": winner,
        "grid": best,
        "grid_only": min(same_grid) if same_grid else None,
        "error_before": min(value for name, value in record.items() if name != "calibrated"),
        "error_after": record[winner],
        "selection": {name: float(found.errors[config.num_fit :].mean()) for name, found in fits.items()},
        "network_evaluations": model.evaluations * (2 if cond is not None and cond.unconditional is not None else 1),
    }


def calibrate(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    guidance_scale: float = 1.0,
    config: CalibrateConfig | None = None,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """A solver table for a pipeline's own network at a guidance scale, and the record of how it was found.

    ``prompts`` are taken in turn: they should be like those that will be served.

    Raises:
        InputError: no prompts, or a configuration that does not fit.
    """
    config = config or CalibrateConfig()
    if not prompts:
        raise InputError("calibration needs prompts like those that will be served: give at least one")
    total = config.num_fit + config.num_selection + config.num_gate
    cond = encode_prompts(pipe, [prompts[index % len(prompts)] for index in range(total)], guided=guidance_scale > 1)
    denoiser = denoiser_of(pipe, guidance_scale=guidance_scale, replay=True)
    noise = sample_noise(range(config.seed, config.seed + total), latent_shape(pipe)).to(pipe.device)
    table, record = calibrate_denoiser(denoiser, denoiser.schedule, noise, cond=cond, config=config, progress=progress)
    named = replace(
        table,
        fingerprint=fingerprint(network_of(pipe)),
        prediction=denoiser.kind,
        guidance_scale=guidance_scale,
        prompts=hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        record={name: value for name, value in record.items() if isinstance(value, float)},
    )
    return named, record


def price(config: CalibrateConfig, *, guided: bool) -> int:
    """The most samples that a calibration sends through the network, known before it starts."""
    total = config.num_fit + config.num_selection + config.num_gate
    fitting = (config.num_fit + config.num_selection) * config.steps * len(_starts(config))
    gate = config.num_gate * config.steps * (1 + len(ANALYTIC[: config.rivals]) * len(config.grids))
    return (total * (config.reference_steps + 1) + fitting + gate) * (2 if guided else 1)


def _starts(config: CalibrateConfig) -> list[str]:
    """What is rolled and fitted: every grid at the middle ridge, and the planned one at the others."""
    return [*config.grids, *[f"planned/{ridge:g}" for ridge in config.ridges[1:]]]


def _candidates(model: Model, seen: Reference, config: CalibrateConfig, progress: Progress) -> dict[str, Fit]:
    rows, fits = torch.arange(seen.states.shape[1]), {}
    for name in progress(_starts(config)):
        grid, _, ridge = name.partition("/")
        value = float(ridge) if ridge else config.ridges[0]
        fits[name] = roll(model, seen, _nodes(grid, seen, config), config.num_fit, value, rows)
    return fits


def _nodes(grid: str, reference: Reference, config: CalibrateConfig) -> tuple[int, ...]:
    if grid == "planned":
        return plan_nodes(reference, config.steps, config.num_fit, config.ridges[0])
    return snap_nodes(grid, reference, config.steps)


def _rivals(reference: Reference, fit: Fit, config: CalibrateConfig) -> list[tuple[str, tuple[int, ...], Analytic]]:
    """Every analytic solver on every grid, the planned one included."""
    grids = {grid: _nodes(grid, reference, config) for grid in config.grids}
    solvers = ANALYTIC[: config.rivals]
    return [(f"{_name(solver)}/{grid}", nodes, solver) for grid, nodes in grids.items() for solver in solvers]


def _name(solver: Analytic) -> str:
    return f"order {solver.order} {solver.variant}{' corrected' if solver.corrector else ''}"


def _run(model: Model, reference: Reference, nodes: Sequence[int], solver: Any, rows: Tensor) -> Tensor:
    """Errors (n,) of a solver on nodes of the reference, root mean square a trajectory over the data's deviation."""
    z, memory = reference.states[0], None
    for here, there in pairwise([*(reference.levels[node] for node in nodes), DATA]):
        z, memory = solver.advance(z, model(z, here, rows), here, there, None, memory)
    return (z - reference.final).square().mean(1).sqrt() / reference.data_std


def _grid_of(nodes: Sequence[int], reference: Reference) -> dict[str, Any]:
    levels = [reference.levels[node] for node in nodes]
    infinite = levels[0].alpha == 0
    return {"log_snr": tuple(level.log_snr for level in levels[infinite:]), "infinite_start": bool(infinite)}


def _table(fit: Fit, reference: Reference) -> SolverTable:
    """The fit at y = x / alpha, as tables keep it."""
    levels = [*(reference.levels[node] for node in fit.nodes), DATA]
    rows = []
    for coefficients, here, there in zip(fit.coefficients, levels[:-1], levels[1:], strict=True):
        linear, *values = (coefficients / there.alpha).tolist()
        rows.append((linear * here.alpha, *values))
    return SolverTable(**_grid_of(fit.nodes, reference), coefficients=tuple(rows))
