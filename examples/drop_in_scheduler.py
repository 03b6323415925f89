"""Use SNRScheduler inside a plain diffusers pipeline, loaded and called the way diffusers documents it.

``python examples/drop_in_scheduler.py [OUT]`` writes OUT/stock.png with the pipeline's own scheduler, OUT/same.png with
SNRScheduler at its defaults, which makes the same images, and OUT/rho.png with noise added along the way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from logsnr import SNRScheduler
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.load import WORLDS

PROMPT, SEEDS = "a photo of a handbag", range(4)


def call(pipe: Any) -> torch.Tensor:
    """Images (n, channels, height, width) in [-1, 1] by the pipeline's own call."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    arguments = {"num_inference_steps": 12, "guidance_scale": 2.0, "generator": generators, "output_type": "pt"}
    return pipe([PROMPT] * len(SEEDS), **arguments).images * 2 - 1


def main(out: Path) -> None:
    """Call one pipeline with three schedulers and save a sheet of each."""
    pipe = StableDiffusionPipeline.from_pretrained(WORLDS["fashion"])
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler.config
    images = {"stock": call(pipe)}
    pipe.scheduler = SNRScheduler.from_config(own)
    images["same"] = call(pipe)
    pipe.scheduler = SNRScheduler.from_config(own, rho=0.5, grid="log-snr")
    images["rho"] = call(pipe)
    for name, made in images.items():
        print(save_picture(image_grid(made, columns=len(SEEDS), scale=4), out / f"{name}.png"))
    print(f"largest difference between stock and same: {(images['stock'] - images['same']).abs().max():.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/drop_in_scheduler"))
