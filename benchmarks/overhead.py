"""What a scheduler's step costs beside the network: ours against diffusers', batch 1, one thread, no network.

Each scheduler runs 250 steps on random outputs, many times; a figure is the median over runs of the seconds a step.
Wants a quiet machine; half a minute.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from record import RESULTS

from logsnr.core.artifact import write_json
from logsnr.solvers.scheduler import SNRScheduler

STEPS, RUNS = 250, 15
SHAPES = ((1, 4, 8, 8), (1, 4, 64, 64))
CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
MADE: dict[str, Callable[[], Any]] = {
    "ours, order 2": lambda: SNRScheduler.from_config(DPMSolverMultistepScheduler(**CONFIG).config, order=2),
    "ours, order 3 corrected": lambda: SNRScheduler.from_config(
        DPMSolverMultistepScheduler(**CONFIG).config, order=3, corrector=True
    ),
    "DPMSolverMultistepScheduler": lambda: DPMSolverMultistepScheduler(**CONFIG),
    "UniPCMultistepScheduler": lambda: UniPCMultistepScheduler(**CONFIG),
    "DDIMScheduler": lambda: DDIMScheduler(**CONFIG),
    "EulerDiscreteScheduler": lambda: EulerDiscreteScheduler(**CONFIG),
}


def microseconds(make: Callable[[], Any], shape: tuple[int, ...]) -> float:
    """Median over runs of the microseconds a step, as a pipeline calls it."""
    scheduler, draws = make(), torch.Generator().manual_seed(0)
    outputs = torch.randn(STEPS, *shape, generator=draws)
    found = []
    for _ in range(RUNS):
        scheduler.set_timesteps(STEPS)
        x = torch.randn(shape, generator=draws)
        timesteps = list(scheduler.timesteps)
        start = time.perf_counter()
        for output, timestep in zip(outputs, timesteps, strict=True):
            scheduler.scale_model_input(x, timestep)
            x = scheduler.step(output, timestep, x, return_dict=False)[0]
        found.append((time.perf_counter() - start) / STEPS)
    return statistics.median(found) * 1e6


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rows = [
        {"scheduler": name, "shape": list(shape), "microseconds": round(microseconds(make, shape), 2)}
        for shape in SHAPES
        for name, make in MADE.items()
    ]
    for row in rows:
        print(row)
    write_json(RESULTS / "solvers" / "overhead.json", {"rows": rows, "steps": STEPS, "runs": RUNS})


if __name__ == "__main__":
    main()
