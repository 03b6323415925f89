"""Calibrate the solver tables that the fashion world ships, at the guidance that `sample` uses by default.

python benchmarks/ship_solvers.py [CALLS ...] writes src/logsnr/worlds/fashion/solvers/CALLS.json; a quarter of an hour
on one core for all.
"""

from __future__ import annotations

import sys
import time

import logsnr
from logsnr.solvers.config import CalibrateConfig, SampleConfig
from logsnr.worlds.load import WORLDS, load_world

CALLS = (3, 4, 5, 8, 10, 20)
GUIDANCE = SampleConfig().guidance_scale


def config(calls: int) -> CalibrateConfig:
    """More trajectories than the default, so that the gate resolves small differences."""
    return CalibrateConfig(
        steps=calls,
        num_fit=64,
        num_selection=32,
        num_gate=32,
        reference_steps=100,
        rounds=3 if calls <= 10 else 1,
        rivals=5,
    )


def main(counts: list[int]) -> None:
    """Calibrate and save, one after another."""
    pipe, captions = logsnr.load("fashion"), load_world("fashion").captions
    prompts = [captions.prompt(label, template) for template in range(4) for label in range(10)]
    for calls in counts or CALLS:
        start = time.monotonic()
        table, record = logsnr.calibrate(pipe, prompts, guidance_scale=GUIDANCE, config=config(calls))
        path = table.save(WORLDS["fashion"] / "solvers" / f"{calls}.json")
        seconds = time.monotonic() - start
        print(
            f"{path.name}: {record['winner']}, error {record['error_after']:.4f}, best analytic "
            f"{record['error_before']:.4f}, {record['network_evaluations']} evaluations, {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main([int(value) for value in sys.argv[1:]])
