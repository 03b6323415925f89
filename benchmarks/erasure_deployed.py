"""What is left of an erasure after deployment: other solvers and guidance, few steps, int8 weights, benign fine-tuning.

    python benchmarks/erasure_deployed.py [--arms EAP ESD UCE] [--targets trouser bag sneaker]

An edit by its preset is measured as made, then under every condition; the unedited model under the same condition
is what rates are relative to. Fine-tuning is on real images of the classes that are kept, all weights, for 200 steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from erasure import KEPT, SAMPLING, Bench
from erasure_attacks import ARMS, erased
from torch import nn
from torch.nn import functional

import logsnr
from logsnr.core.artifact import write_json
from logsnr.core.random import generator
from logsnr.core.types import Prediction
from logsnr.evaluation.erasure import class_labels, erasure_figures, judged
from logsnr.models.pipeline import Pipeline, denoiser_of, encode_images, encode_prompts, network_of
from logsnr.schedules.prediction import output_of
from logsnr.schedules.schedule import levels_at
from logsnr.solvers.config import SampleConfig

SEED, IMAGE_SEED, IMAGES = 82_000, 60_000_000, 500
STEPS, BATCH, RATE = 200, 32, 1e-4
Change = Callable[[Pipeline, Bench, list[int]], None]


def as_made(pipe: Pipeline, bench: Bench, gone: list[int]) -> None:
    """Nothing."""


@torch.no_grad()
def in_int8(pipe: Pipeline, bench: Bench, gone: list[int]) -> None:
    """Every matrix and convolution rounded to eight bits, with a scale a row."""
    for module in network_of(pipe).modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            scale = module.weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            scale = scale.view(-1, *[1] * (module.weight.dim() - 1))
            module.weight.copy_((module.weight / scale).round() * scale)


def tuned_on_others(pipe: Pipeline, bench: Bench, gone: list[int]) -> None:
    """Plain training on real images of the kept classes."""
    data, network, draws = bench.world.source.measuring()[0], network_of(pipe), generator(SEED, "benign")
    rows = (~torch.isin(data.labels, torch.tensor(gone))).nonzero()[:, 0]
    rows = rows[torch.randperm(len(rows), generator=draws)[:2000]]
    items = data.take(rows)
    latents, denoiser = encode_images(pipe, items["image"]), denoiser_of(pipe)
    optimizer = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=RATE)
    for _ in range(STEPS):
        chosen = torch.randint(len(rows), (BATCH,), generator=draws)
        prompts = [bench.world.captions.prompt(int(label), place) for place, label in enumerate(items["label"][chosen])]
        texts, clean = encode_prompts(pipe, prompts, guided=False).values, latents[chosen]
        level = levels_at(denoiser.schedule, [0.01 + 0.98 * float(torch.rand((), generator=draws))])[0]
        noise = torch.randn(clean.shape, generator=draws)
        found = denoiser.output(level.alpha * clean + level.sigma * noise, level, texts)
        loss = functional.mse_loss(found, output_of(denoiser.kind, Prediction(clean, noise), level))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.requires_grad_(False)


CONDITIONS: dict[str, tuple[SampleConfig, Change]] = {
    "as made": (SAMPLING, as_made),
    "DDIM, 50 steps": (replace(SAMPLING, steps=50, order=1), as_made),
    "4 steps": (replace(SAMPLING, steps=4), as_made),
    "noise on the way": (replace(SAMPLING, steps=20, rho=1.0), as_made),
    "without guidance": (replace(SAMPLING, guidance_scale=1.0), as_made),
    "guidance 7.5": (replace(SAMPLING, guidance_scale=7.5), as_made),
    "int8 weights": (SAMPLING, in_int8),
    "tuned on other classes": (SAMPLING, tuned_on_others),
}


def measure(bench: Bench, arm: str, target: str) -> list[dict[str, Any]]:
    """A row for every condition."""
    delta, names = erased(bench, arm, target, SEED), bench.world.captions.names
    gone, rows = class_labels([target], names), []
    prompts, labels = bench.world.source.ask(IMAGES, held_out=True)
    seeds = range(IMAGE_SEED, IMAGE_SEED + IMAGES)
    for condition, (sampling, change) in CONDITIONS.items():
        found = []
        for edited in (False, True):
            pipe = logsnr.load(bench.world.name)
            if edited:
                delta.merge(pipe)
            change(pipe, bench, gone)
            made = logsnr.sample(pipe, prompts, seeds=seeds, config=sampling, batch_size=100)
            found.append(judged(bench.judges["test"], made.images, labels))
        figures = erasure_figures(*found, gone, [name[0] for name in names])
        kept = {name: figures[name] for name in ("esr1", "psr1", "relative_esr1", "relative_psr1")}
        rows.append({"arm": arm, "target": target, "condition": condition, **kept, "before": figures["before"]})
        print(arm, target, condition, {name: round(value, 3) for name, value in kept.items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", default=["EAP", "ESD", "UCE"], choices=list(ARMS))
    parser.add_argument("--targets", nargs="+", default=["trouser", "bag", "sneaker"])
    chosen = parser.parse_args()
    bench: Bench | None = None
    for target in chosen.targets:
        for arm in chosen.arms:
            place = KEPT / f"deployed-{target}-{arm}.json".replace(" ", "_")
            if place.exists():
                continue
            bench, start = bench or Bench(), time.monotonic()
            rows = measure(bench, arm, target)
            write_json(place, {"rows": rows, "seconds": round(time.monotonic() - start, 1)})


if __name__ == "__main__":
    main()
