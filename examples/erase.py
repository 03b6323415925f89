"""Erase one concept, look at the same seeds before and after, and take the edit back.

``python examples/erase.py [OUT]`` writes OUT/delta, and OUT/images.png: an ankle boot and a sneaker before the edit,
then both after it. It is short: ``logsnr erase`` trains for longer, and ``logsnr evaluate --delta`` measures.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

import logsnr
from logsnr.erasure.config import CandidateConfig, preset
from logsnr.train.preview import image_grid, save_picture

TARGET, KEPT, SEEDS = "ankle boot", "sneaker", range(6)
WORDS = ("sneaker", "sandal", "bag", "coat", "shirt", "dress", "trouser", "photo", "dark", "small")


def main(out: Path) -> None:
    """Erase, draw, and revert."""
    pipe = logsnr.load("fashion")
    config = preset("eap", TARGET)
    config = replace(
        config,
        candidates=CandidateConfig(WORDS),
        run=replace(config.run, steps=25, batch_size=4),
    )
    delta = logsnr.erase(pipe, config=config)
    print(f"{len(delta.tensors)} tensors changed for {delta.record.metrics['network_evaluations']:,} evaluations")
    delta.save_pretrained(out / "delta")

    steps, prompts = logsnr.SampleConfig(steps=8), [f"a photo of a {name}" for name in (TARGET, KEPT)]
    before = [logsnr.sample(pipe, prompt, seeds=SEEDS, config=steps).images for prompt in prompts]
    delta.apply(pipe)
    after = [logsnr.sample(pipe, prompt, seeds=SEEDS, config=steps).images for prompt in prompts]
    delta.revert(pipe)
    print(save_picture(image_grid(torch.cat(before + after), columns=len(SEEDS), scale=4), out / "images.png"))
    again = logsnr.sample(pipe, prompts[0], seeds=SEEDS, config=steps).images
    print(f"reverted bit by bit: {torch.equal(again, before[0])}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/erase"))
