"""Memory of one step of erasure at the size of Stable Diffusion 1, against a scheme with two copies of the network.

    python benchmarks/erasure_memory.py [--size full or tiny] [--out FILE]

A randomly initialised UNet of that size (64x64 latents, float32, gradient checkpointing) takes one step of adversarial
preservation on two-step trajectories: once over one copy of the weights, once with a second network for the original's
outputs, the rest alike. Each runs in a process of its own, whose peak of resident memory is taken; glibc is told to
give large blocks back at once (``MALLOC_MMAP_THRESHOLD_``), or what was freed would count as used. Weights are counted
beside: what is held of them, over one model.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from record import RESULTS

from logsnr.core.artifact import write_json
from logsnr.erasure.config import CandidateConfig, EraseConfig
from logsnr.erasure.erase import make_method
from logsnr.models.pipeline import denoiser_of, network_of
from logsnr.models.text import build_text_encoder, build_tokenizer
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit

WORDS = ("photo", "dark", "sneaker", "small", "house", "dog")
SIZES: dict[str, dict[str, Any]] = {
    "full": {"block_out_channels": (320, 640, 1280, 1280), "sample_size": 64, "cross_attention_dim": 768},
    "tiny": {"block_out_channels": (32, 32, 64, 64), "sample_size": 16, "cross_attention_dim": 32},
}
"""``full`` is the UNet of Stable Diffusion 1, ``tiny`` a check that this script runs."""

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}


def build(size: str) -> StableDiffusionPipeline:
    """A pipeline whose UNet has the size, and whose other parts are small."""
    sizes = SIZES[size]
    torch.manual_seed(0)
    tokenizer = build_tokenizer([" ".join(WORDS), "garbage truck"], max_length=77)
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4),
        text_encoder=build_text_encoder(tokenizer, width=sizes["cross_attention_dim"], layers=1),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**sizes),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def one_step(size: str, *, copies: int) -> dict[str, Any]:
    """Peak memory and seconds of a step, with the network held once or twice."""
    pipe, start = build(size), time.perf_counter()
    network_of(pipe).enable_gradient_checkpointing()
    config = EraseConfig(
        ("garbage truck",),
        trajectory_steps=2,
        timestep_sampling="uniform",
        candidates=CandidateConfig(WORDS, sampler="all"),
        run=FitConfig(steps=1, batch_size=1, warmup=0, clip=None),
    )
    method = make_method(pipe, config)
    held = sum(p.numel() for p in network_of(pipe).parameters())
    weights = held + sum(value.numel() for value in method.scores.before.values())
    if copies == 2:
        second = copy.copy(pipe)
        second.unet = copy.deepcopy(pipe.unet).requires_grad_(False)
        method.scores.old, weights = denoiser_of(second), 2 * held
    list(fit(method, None, config.run))
    return {
        "copies": copies,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "weights_over_one_model": weights / held,
        "parameters": held,
        "edited_parameters": sum(value.numel() for value in method.scores.before.values()),
        "evaluation_equivalents": method.scores.cost.evaluation_equivalents,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="full", choices=list(SIZES))
    parser.add_argument("--copies", type=int, choices=[1, 2], help="measure in this process, and print")
    parser.add_argument("--out", type=Path, default=RESULTS / "erasure" / "memory.json")
    chosen = parser.parse_args()
    if chosen.copies:
        print(json.dumps(one_step(chosen.size, copies=chosen.copies)))
        return
    rows = []
    for copies in (1, 2):
        command = [sys.executable, __file__, "--size", chosen.size, "--copies", str(copies)]
        told = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR}
        ).stdout
        rows.append(json.loads(told.splitlines()[-1]))
        print(rows[-1], flush=True)
    write_json(chosen.out, {"size": chosen.size, "rows": rows, "ratio": rows[0]["peak_mb"] / rows[1]["peak_mb"]})


if __name__ == "__main__":
    main()
