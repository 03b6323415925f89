"""Compute a solver for one model, one guidance and five evaluations, and sample with it in two ways.

``python examples/calibrate.py [OUT]`` writes OUT/solver.json, and OUT/images.png: DPM-Solver++ 2M above, the table
below, from the same noise. The budget is tiny; ``logsnr calibrate`` spends more by default, and prints its price first.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import logsnr
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.load import load_world

STEPS, GUIDANCE, SEEDS, PROMPT = 5, 2.0, range(8), "a photo of a sandal"
BUDGET = logsnr.CalibrateConfig(steps=STEPS, num_fit=16, num_selection=8, num_gate=8, reference_steps=24, rivals=1)


def main(out: Path) -> None:
    """Calibrate, save the table, and sample."""
    pipe, captions = logsnr.load("fashion"), load_world("fashion").captions
    prompts = [captions.prompt(label, 0) for label in range(len(captions.names))]
    table, record = logsnr.calibrate(pipe, prompts, guidance_scale=GUIDANCE, config=BUDGET)
    path = table.save(out / "solver.json")
    print(f"{record['network_evaluations']} network evaluations; {record['winner']} won on noise that nobody had seen:")
    for name, error in sorted(record["gate"].items(), key=lambda item: item[1]):
        print(f"  {error:.4f} {name}")

    plain = logsnr.SampleConfig(steps=STEPS, guidance_scale=GUIDANCE)
    tabled = logsnr.SampleConfig(solver=path, guidance_scale=GUIDANCE)
    rows = [logsnr.sample(pipe, PROMPT, seeds=SEEDS, config=config).images for config in (plain, tabled)]
    print(save_picture(image_grid(torch.cat(rows), columns=len(SEEDS), scale=4), out / "images.png"))

    pipe.scheduler = logsnr.SNRScheduler.from_config(
        pipe.scheduler.config, table=path
    )  # inside the pipeline's own call
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    arguments = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "generator": generators, "output_type": "pt"}
    images = pipe([PROMPT] * len(SEEDS), **arguments).images * 2 - 1
    print(f"largest difference between the two ways: {(images - rows[1]).abs().max():.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/calibrate"))
