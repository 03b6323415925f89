"""Calibration: levels and step coefficients for one model and one number of steps, without gradients.

Fine reference trajectories are made once. The levels are chosen among their nodes by dynamic programming over local
errors, at no call; the coefficients are fitted step by step; then all numbers are refined together towards the
reference's samples. A held-out gate keeps the analytic solver wherever that is no worse.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.random import sample_noise
from logsnr.core.types import Denoiser, Level
from logsnr.models.denoiser import Conditioning
from logsnr.models.fingerprint import fingerprint
from logsnr.models.pipeline import Pipeline, denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.schedules.origins import refuse_few_step
from logsnr.schedules.schedule import Schedule
from logsnr.solvers.config import CalibrateConfig, SampleConfig
from logsnr.solvers.fit import Fit, Run, errors, grid_of, roll, to_table
from logsnr.solvers.plan import plan_nodes, snap_nodes
from logsnr.solvers.reference import Model, Progress, Reference, make_reference
from logsnr.solvers.refine import refine
from logsnr.solvers.sample import make_grid
from logsnr.solvers.table import Analytic, SolverTable

ANALYTIC = (
    Analytic(2, "midpoint"),
    Analytic(2, "heun"),
    Analytic(2, "heun", True),
    Analytic(1),
    Analytic(3, "heun", True),
)
NOW = "order 2 midpoint/scheduler"
"""The default solver on the levels of the pipeline's own scheduler."""
ADVISED = ("log-snr-early", ANALYTIC[4])
"""What is advised without calibration, on its grid."""


@torch.no_grad()
def calibrate_denoiser(
    denoiser: Denoiser,
    schedule: Schedule,
    noise: Tensor,
    *,
    cond: Conditioning | None = None,
    config: CalibrateConfig,
    own: Sequence[Level] | None = None,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """A solver table for a denoiser, and the record of how it was found.

    ``noise`` (n, ...) is standard normal, one row a trajectory (and one of ``cond``): ``num_fit`` to fit, then
    ``num_selection`` to select, then ``num_gate`` to compare with the analytic solvers. ``own`` are the levels that are
    visited today: with order 2 midpoint they are ``error_now``, and a rival of the gate. Where they stop short of clean
    data, their last step is taken to it.

    Raises:
        InputError: the rows of noise are not as many as the configuration needs, or the network's samples are not
            finite or all alike.
    """
    total = config.num_fit + config.num_selection + config.num_gate
    if len(noise) != total:
        raise InputError(f"calibration needs {total} start noises, not {len(noise)}: see CalibrateConfig")
    model, rows = Model(denoiser, schedule, noise.shape[1:], cond), torch.arange(total)
    reference = make_reference(model, noise.flatten(1), rows, config.reference_steps, progress)
    _check_varied(reference)
    training = config.num_fit + config.num_selection
    seen = Reference(reference.levels, reference.states[:, :training], reference.estimates[:, :training])
    unseen = Reference(reference.levels, reference.states[:, training:], reference.estimates[:, training:])
    fits = _candidates(model, seen, config, progress)
    selection = {name: _mean(errors(run[0], seen)[config.num_fit :]) for name, (_, run) in fits.items()}
    best = min(selection, key=lambda name: selection[name])
    fit = refine(model, seen, *fits[best], config.num_fit, rows[:training], config.rounds, progress)
    rivals = _rivals(seen, config, own, fit.levels)
    tables = {"calibrated": to_table(fit)} | {
        name: SolverTable(**grid_of(levels), analytic=solver) for name, levels, solver in rivals
    }
    gate = {name: _error(model, unseen, table, rows[training:]) for name, table in tables.items()}
    winner = min(gate, key=lambda name: gate[name])
    if math.isinf(gate[winner]):
        raise InputError("every solver left the finite numbers: calibrate for more steps, or check the network")
    record = {"gate": gate, "winner": winner, "grid": best, **_summary(gate, winner), "selection": selection}
    return tables[winner], record | {"network_evaluations": model.network_evaluations}


def calibrate(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    guidance_scale: float = SampleConfig.guidance_scale,
    negative: str = "",
    config: CalibrateConfig | None = None,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """A solver table for a pipeline's own network at a guidance scale, and the record of how it was found.

    ``prompts`` are taken in turn: they should be like those that will be served, and so should ``negative``, the prompt
    that guidance leads away from.

    Raises:
        InputError: no prompts, a configuration that does not fit, or a network that makes no samples to compare.
        UnsupportedError: the network is a consistency model.
    """
    config = config or CalibrateConfig()
    refuse_few_step(pipe.scheduler.config, "keep its ConsistencyScheduler")
    if not prompts:
        raise InputError("calibration needs prompts like those that will be served: give at least one")
    total = config.num_fit + config.num_selection + config.num_gate
    taken, guided = [prompts[index % len(prompts)] for index in range(total)], guidance_scale > 1
    cond = encode_prompts(pipe, taken, negative=negative, guided=guided)
    denoiser = denoiser_of(pipe, guidance_scale=guidance_scale, replay=True)
    noise = sample_noise(range(config.seed, config.seed + total), latent_shape(pipe)).to(pipe.device)
    own = _own_levels(pipe, denoiser.schedule, config.steps)
    table, record = calibrate_denoiser(
        denoiser, denoiser.schedule, noise, cond=cond, config=config, own=own, progress=progress
    )
    named = replace(
        table,
        fingerprint=fingerprint(network_of(pipe)),
        prediction=denoiser.kind,
        guidance_scale=guidance_scale,
        negative=negative,
        prompts=hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16],
        record=_finite(record) | {"config": asdict(config), "version": version("logsnr")},
    )
    return named, record


def _summary(gate: dict[str, float], winner: str) -> dict[str, float | None]:
    """The errors that a reader asks for first, and the share of the gain that the table's levels alone have."""
    own = min((error for name, error in gate.items() if name.endswith("/table")), default=None)
    known = [error for name, error in gate.items() if name != "calibrated" and not name.endswith("/table")]
    before, after = min(known, default=math.inf), gate[winner]
    share = (before - own) / (before - after) if own is not None and after < before < math.inf else None
    return {
        "grid_only": own,
        "grid_share": share,
        "error_now": gate.get(NOW),
        "error_before": before,
        "error_after": after,
    }


def _finite(value: Any) -> Any:
    """The same without what JSON does not have."""
    if isinstance(value, dict):
        kept = {name: _finite(inner) for name, inner in value.items()}
        return {name: inner for name, inner in kept.items() if inner is not None}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_varied(reference: Reference) -> None:
    """Refuse samples that are all alike, as of a network of zeros: their deviation is what errors are measured in."""
    if not reference.data_std > 1e-6 * float(reference.final.abs().max()):
        raise InputError(
            "the network makes the same sample from every noise, which leaves nothing to calibrate: check its weights"
        )


def _mean(found: Tensor) -> float:
    """The mean error; infinite where a solver left the finite numbers, so that it is the least of no comparison."""
    value = float(found.mean())
    return math.inf if math.isnan(value) else value


def _own_levels(pipe: Pipeline, schedule: Schedule, steps: int) -> list[Level] | None:
    """The levels of the pipeline's own scheduler; none where it cannot make that many steps."""
    try:
        return make_grid(pipe, schedule, SampleConfig(steps=steps))
    except (InputError, UnsupportedError):
        return None


def starts(config: CalibrateConfig) -> list[str]:
    """What is rolled and fitted: every grid at the middle ridge, and the planned one at the others."""
    return [*config.grids, *[f"planned/{ridge:g}" for ridge in config.ridges[1:]]]


def _candidates(
    model: Model, seen: Reference, config: CalibrateConfig, progress: Progress
) -> dict[str, tuple[Fit, Run]]:
    rows, fits = torch.arange(seen.states.shape[1]), {}
    for name in progress(starts(config)):
        grid, _, ridge = name.partition("/")
        value = float(ridge) if ridge else config.ridges[0]
        fits[name] = roll(model, seen, _nodes(grid, seen, config), config.num_fit, value, rows)
    return fits


def _nodes(grid: str, reference: Reference, config: CalibrateConfig) -> tuple[int, ...]:
    if grid == "planned":
        return plan_nodes(reference, config.steps, config.num_fit, config.ridges[0])
    return snap_nodes(grid, reference, config.steps)


def _rivals(
    reference: Reference, config: CalibrateConfig, own: Sequence[Level] | None, levels: Sequence[Level]
) -> list[tuple[str, Sequence[Level], Analytic]]:
    """Every analytic solver on every known grid and on the table's own ``levels``, and what needs no calibration.

    That is the advised solver on its grid, and the default one on the levels that are visited today.
    """
    known = {grid: _snapped(grid, reference, config.steps) for grid in config.grids if grid != "planned"}
    solvers = [(solver, grid) for grid in [*known, "table"] for solver in ANALYTIC[: config.rivals]]
    today = [(NOW, own[:-1], ANALYTIC[0])] if own else []
    known |= {ADVISED[0]: _snapped(ADVISED[0], reference, config.steps), "table": levels}
    rivals = dict.fromkeys([*solvers, ADVISED[::-1]])
    return [*((f"{_name(solver)}/{grid}", known[grid], solver) for solver, grid in rivals), *today]


def _snapped(grid: str, reference: Reference, steps: int) -> list[Level]:
    return [reference.levels[node] for node in snap_nodes(grid, reference, steps)]


def _name(solver: Analytic) -> str:
    return f"order {solver.order} {solver.variant}{' corrected' if solver.corrector else ''}"


def _error(model: Model, reference: Reference, table: SolverTable, rows: Tensor) -> float:
    """The mean error of a table on trajectories of the reference."""
    z, memory, solver = reference.states[0], None, table.solver()
    for here, there in pairwise(table.levels(model.unit)):
        z, memory = solver.advance(z, model(z, here, rows), here, there, None, memory)
    return _mean(errors(z, reference))
