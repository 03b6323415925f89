"""Train a pipeline that samples in one or two calls from one that needs many, and look at the pairs it learns from.

``python examples/consistency.py [OUT]`` needs Fashion-MNIST. It writes OUT/few, a folder that diffusers loads too, and
OUT/images.png: one call, two calls, and the teacher's ten. It is short: ``logsnr consistency train`` trains for longer.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

import logsnr
from logsnr.consistency.config import consistency_preset
from logsnr.consistency.differences import difference_report
from logsnr.consistency.train import captioned_latents, observe
from logsnr.train.preview import image_grid, save_picture
from logsnr.worlds.load import load_world

PROMPT, SEEDS = "an ankle boot", range(8)


def main(out: Path) -> None:
    """Measure the teacher, train, and draw."""
    pipe = logsnr.load("fashion")
    config = consistency_preset("slct_small", learning_rate=1e-3, end_levels=40)
    config = replace(config, run=replace(config.run, steps=30, batch_size=8, cpu=True))
    latents, condition = captioned_latents(pipe, load_world("fashion"), rows=torch.arange(1000))

    levels = difference_report(observe(pipe, latents, config, condition=condition), num_levels=6, num_samples=32)
    for row in levels["levels"]:
        print(f"noise {row['sigma']:6.3f}: {100 * row['extreme_share']:.1f} % of the differences are extreme outliers")

    made = [logsnr.sample(pipe, PROMPT, seeds=SEEDS, config=logsnr.SampleConfig(steps=10)).images]
    for progress in logsnr.consistency_train(pipe, latents, config, condition=condition):
        if progress.step % 10 == 0:
            print(f"step {progress.step}: pairs differ by {progress.logs['consistency']:.3f}, weighed")
    for calls in (2, 1):
        few = logsnr.SampleConfig(steps=calls, guidance_scale=1.0)
        made.insert(0, logsnr.sample(pipe, PROMPT, seeds=SEEDS, config=few).images)
    print(save_picture(image_grid(torch.cat(made), columns=len(SEEDS), scale=4), out / "images.png"))
    pipe.save_pretrained(out / "few")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/consistency"))
