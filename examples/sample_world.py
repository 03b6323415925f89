"""Sample the embedded fashion world along the ODE and along an SDE, with the same seeds.

``python examples/sample_world.py [OUT]`` writes OUT/rho.png: rho = 0 in the upper row, rho = 0.5 in the lower one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import logsnr
from logsnr.train.preview import image_grid, save_picture

PROMPT, SEEDS = "a photo of an ankle boot", range(8)


def main(out: Path) -> None:
    """Sample both settings and save one sheet."""
    pipe = logsnr.load("fashion")
    rows = []
    for rho in (0.0, 0.5):
        made = logsnr.sample(pipe, PROMPT, seeds=SEEDS, config=logsnr.SampleConfig(steps=10, rho=rho))
        print(f"rho {rho}: {made.nfe} evaluations an image, {made.seconds:.1f} s for {len(made.images)} images")
        rows.append(made.images)
    print(save_picture(image_grid(torch.cat(rows), columns=len(SEEDS), scale=4), out / "rho.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/sample_world"))
