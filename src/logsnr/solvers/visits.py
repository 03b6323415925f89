"""A sampling run as numbers: what each call of the network leads to, so that a step is a handful of tensor operations.

A multistep solver visits each level once, Heun's method (2206.00364) twice: once to go on, once to repair the arrival.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.prediction import Kind, x0_weights
from logsnr.solvers.backward import rho_of_step
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.plain import Frame, frame_scale, slope_weights
from logsnr.solvers.table import ESTIMATES, Tabulated
from logsnr.solvers.weights import StepWeights, step_weights


@dataclass(frozen=True, slots=True)
class Visit:
    """One call of the network at ``level`` and what follows from it.

    x0 = clean[0] * x + clean[1] * output, and where steps go along a slope, that is slope[0] * x + slope[1] * output
    in the same way. ``repair`` redoes the step that led here, ``step`` is the step that leads on, and ``before`` is its
    weight of the sample of the previous visit.
    """

    level: Level
    clean: tuple[float, float]
    step: StepWeights
    repair: StepWeights | None = None
    slope: tuple[float, float] | None = None
    before: float = 0.0


def multistep_visits(
    solver: Exponential | Tabulated, kind: Kind, levels: Sequence[Level], begin: int = 0
) -> list[Visit]:
    """The visits of a run over the levels that begins at level ``begin``, without earlier evaluations.

    Raises:
        InputError: rho lists another number of steps.
    """
    rho = getattr(solver, "rho", 0.0)
    if levels and isinstance(rho, list | tuple) and len(rho) != len(levels) - 1:
        raise InputError(f"rho lists {len(rho)} values for {len(levels) - 1} steps: give one a step")
    visits, past = [], ()
    for index, (here, there) in enumerate(pairwise(levels[begin:]), begin):
        nodes = (here, *past)
        repair = _repair(solver, nodes, index) if isinstance(solver, Exponential) and solver.corrector else None
        visits.append(Visit(here, x0_weights(kind, here), _weights(solver, nodes, there, index, begin), repair))
        past = nodes[: solver.order if isinstance(solver, Exponential) else ESTIMATES] if here.alpha else ()
    return visits


def _weights(
    solver: Exponential | Tabulated, nodes: tuple[Level, ...], there: Level, index: int, begin: int
) -> StepWeights:
    """The step to ``there``; a table's row counts on evaluations that a run from its middle does not have at first."""
    if isinstance(solver, Tabulated) and begin > 0 and index < begin + ESTIMATES - 1:
        solver = Exponential(2)
    kept = nodes[: solver.order if isinstance(solver, Exponential) else ESTIMATES]
    return solver.weights(nodes[0], there, [(level, None) for level in kept], index)


def _repair(solver: Exponential, nodes: tuple[Level, ...], index: int) -> StepWeights | None:
    """The step that led to nodes[0] again, now with the evaluation at its end among the nodes."""
    if len(nodes) == 1:
        return None
    kept = nodes[: 1 + max(solver.order - 1, 1)]
    return step_weights(nodes[1], nodes[0], kept, rho_of_step(solver.rho, index - 1))


def heun_visits(kind: Kind, levels: Sequence[Level], frame: Frame, begin: int = 0) -> list[Visit]:
    """The visits of Heun's method: the first level once, the others twice, to repair the arrival and to go on.

    ``frame`` "ve" goes along x / alpha in sigma / alpha, where the slope is eps; "flow" along x / (alpha + sigma) in
    sigma / (alpha + sigma), where it is eps - x0; a step from infinite noise takes the second.
    """
    visits: list[Visit] = []
    for here, there in pairwise(levels):
        own: Frame = frame if here.alpha else "flow"
        kept, way = slope_weights(here, there, own)
        onward = StepWeights(kept, (way,), 0.0)
        visits.append(Visit(here, x0_weights(kind, here), onward, slope=_slope(kind, here, own)))
        if there.sigma:
            again = StepWeights(0.0, (way / 2, way / 2), 0.0)
            clean, slope = x0_weights(kind, there), _slope(kind, there, own)
            visits.append(Visit(there, clean, again, slope=slope, before=kept))
    return visits[begin:]


def _slope(kind: Kind, level: Level, frame: Frame) -> tuple[float, float]:
    """The weights of x and of the output in (x - scale * x0) / sigma."""
    of_x, of_output = x0_weights(kind, level)
    scale = frame_scale(level, frame)
    return (1 - scale * of_x) / level.sigma, -scale * of_output / level.sigma
