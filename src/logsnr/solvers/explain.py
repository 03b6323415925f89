"""What a sampling run will do, before it runs: its levels, what the network is told, and the numbers of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from logsnr.core.errors import UnsupportedError
from logsnr.core.types import Level
from logsnr.models.pipeline import Pipeline, denoiser_of
from logsnr.schedules.prediction import check_start
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.consistency import ConsistencyStep
from logsnr.solvers.sample import make_run
from logsnr.solvers.visits import multistep_visits
from logsnr.solvers.weights import StepWeights


@dataclass(frozen=True)
class Explanation:
    """Levels (steps + 1), the timestep told to the network and the weights of each step.

    A step reads x_next = linear * x + sum of values[j] * r_j + noise * n, r_0 being the newest evaluation. With the
    corrector, ``corrected`` holds the step that led to a level in the same way, taken again once r_0 is known there.
    """

    levels: list[Level]
    timesteps: list[float]
    weights: list[StepWeights]
    corrected: list[StepWeights | None]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-like row a level; infinities are the strings "inf" and "-inf"."""
        rows = []
        for index, at in enumerate(self.levels):
            row: dict[str, Any] = {"t": at.t, "alpha": at.alpha, "sigma": at.sigma, "log_snr": at.log_snr}
            if index < len(self.weights):
                row |= {"timestep": self.timesteps[index], **_numbers(self.weights[index])}
                again = self.corrected[index]
                row |= {"corrected": _numbers(again)} if again else {}
            rows.append({name: _finite(value) for name, value in row.items()})
        return rows


def explain(pipe: Pipeline, *, config: SampleConfig | None = None) -> Explanation:
    """The levels and weights of a sampling run of a pipeline, without calling its network.

    Raises:
        InputError: the run is impossible, as ``sample`` would say.
        UnsupportedError: the network is a consistency model, whose steps are no weights of estimates.
    """
    denoiser = denoiser_of(pipe)
    levels, solver = make_run(pipe, denoiser.schedule, config or SampleConfig())
    if isinstance(solver, ConsistencyStep):
        raise UnsupportedError("a consistency model has no step weights: it goes to clean data at once, and adds noise")
    check_start(denoiser.kind, levels[0])
    timesteps = [denoiser.timestep_of(level) for level in levels[:-1]]
    visits = multistep_visits(solver, denoiser.kind, levels)
    weights, corrected = [visit.step for visit in visits], [visit.repair for visit in visits]
    return Explanation(levels, timesteps, weights, corrected)


def _numbers(step: StepWeights) -> dict[str, Any]:
    return {"linear": step.linear, "values": list(step.values), "noise": step.noise}


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value
