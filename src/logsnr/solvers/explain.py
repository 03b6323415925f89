"""What a sampling run will do, before it runs: its levels, what the network is told, and the numbers of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from logsnr.core.types import Level
from logsnr.models.pipeline import Pipeline, denoiser_of
from logsnr.schedules.prediction import check_start
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.sample import make_run
from logsnr.solvers.weights import StepWeights


@dataclass(frozen=True)
class Explanation:
    """Levels (steps + 1), the timestep told to the network and the weights of each step.

    A step reads x_next = linear * x + sum of values[j] * r_j + noise * n, r_0 being the newest evaluation.
    """

    levels: list[Level]
    timesteps: list[float]
    weights: list[StepWeights]
    flow: bool

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-like row a level; infinities are the strings "inf" and "-inf"."""
        rows = []
        for index, at in enumerate(self.levels):
            row: dict[str, Any] = {"t": at.t, "alpha": at.alpha, "sigma": at.sigma, "log_snr": at.log_snr}
            if index < len(self.weights):
                step = self.weights[index]
                row |= {"timestep": self.timesteps[index], "linear": step.linear}
                row |= {"values": list(step.values), "noise": step.noise}
            rows.append({name: _finite(value) for name, value in row.items()})
        return rows


def explain(pipe: Pipeline, *, config: SampleConfig | None = None) -> Explanation:
    """The levels and weights of a sampling run of a pipeline, without calling its network.

    Raises:
        InputError: the run is impossible, as ``sample`` would say.
    """
    denoiser = denoiser_of(pipe)
    levels, solver = make_run(pipe, denoiser.schedule, config or SampleConfig())
    check_start(denoiser.kind, levels[0])
    timesteps = [denoiser.timestep_of(level) for level in levels[:-1]]
    weights, history = [], ()
    for step, (here, there) in enumerate(pairwise(levels)):
        nodes = ((here, None), *history)[: solver.order if isinstance(solver, Exponential) else 3]
        weights.append(solver.weights(here, there, nodes, step))
        history = nodes if here.alpha else ()
    return Explanation(levels, timesteps, weights, denoiser.kind == "flow")


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and math.isinf(value) else value
