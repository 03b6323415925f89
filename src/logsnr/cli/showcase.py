"""The parts of the demo: each makes something, measures it, and says whether that is as it should be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel as UNet
from torch import Tensor

from logsnr.cli.part import Part
from logsnr.cli.showcase_continual import SHIPPED, kept_on
from logsnr.cli.showcase_erasure import attacked, erased
from logsnr.cli.showcase_few import few_calls
from logsnr.cli.showcase_hiding import hidden
from logsnr.core.errors import MissingError
from logsnr.evaluation.information import pipeline_information
from logsnr.evaluation.plots import plot_information
from logsnr.evaluation.report import Figure, Section
from logsnr.information.config import InformationConfig
from logsnr.metrics.judge import judge_images
from logsnr.models.pipeline import Pipeline, decode_latents, network_of
from logsnr.solvers.config import SampleConfig
from logsnr.solvers.sample import sample
from logsnr.train.preview import image_grid
from logsnr.worlds.config import FEW_STEP
from logsnr.worlds.load import WORLDS, World, load, load_world


def showcase(name: str, num_judged: int) -> Iterator[Part]:
    """The parts of an embedded world's demo, each timed."""
    start = time.perf_counter()
    pipe, world = load(name), load_world(name)
    deltas = sorted((world.edits / "deltas").glob("*"))
    parts: list[Callable[[], Part]] = [
        lambda: classes(pipe, world),
        lambda: evaluations(pipe, world),
        *([lambda: calibrated(pipe, world, table)] if (table := world.folder / "solvers" / "5.json").exists() else []),
        *(partial(few_calls, pipe, world, few) for few, of in FEW_STEP.items() if of == name and few in WORLDS),
        *(partial(erasing, pipe, world, folder) for folder in deltas for erasing in (erased, attacked)),
        *(partial(hidden, pipe, world, folder) for folder in sorted((world.edits / "hidden").glob("*"))),
        *([lambda: kept_on(pipe, world)] if SHIPPED.exists() and isinstance(network_of(pipe), UNet) else []),
        lambda: judged(pipe, world, num_judged),
        lambda: known(pipe, world),
        lambda: speed(pipe, world),
        lambda: verified(pipe, world),
    ]
    for part in parts:
        made = part()
        yield replace(made, seconds=time.perf_counter() - start)
        start = time.perf_counter()


def classes(pipe: Pipeline, world: World) -> Part:
    """What the world shows, each by a prompt of its own."""
    sheet = world.source.sheet()
    made = sample(pipe, sheet.prompts, seeds=[seed % 8 for seed in range(len(sheet.prompts))])
    figure = Figure(image_grid(made.images, scale=2), sheet.legend)
    summary = f"{len(sheet.prompts)} images with {made.nfe} evaluations each in {made.seconds:.1f} s"
    values = {"images": len(sheet.prompts), "nfe": made.nfe}
    return Part("sample", Section("Every class by prompt", summary, [figure]), values)


def shown(world: World) -> list[str]:
    """Ten prompts of the world's sheet."""
    prompts = world.source.sheet().prompts
    return prompts[:: -(-len(prompts) // 10)]


def evaluations(pipe: Pipeline, world: World) -> Part:
    """The same seeds with fewer and more evaluations."""
    prompts = shown(world)
    rows = [sample(pipe, prompts, seeds=range(len(prompts)), config=SampleConfig(steps=n)) for n in (4, 8, 20)]
    reference = rows[-1].latents
    errors = {f"rms_{row.nfe}": float((row.latents - reference).square().mean().sqrt()) for row in rows[:-1]}
    sheet = image_grid(torch.cat([row.images for row in rows]), columns=len(prompts))
    figure = Figure(sheet, "4, 8 and 20 evaluations from top.")
    text = ", ".join(f"{value:.3f} at {name.removeprefix('rms_')}" for name, value in errors.items())
    summary = f"distance of latents to those of 20 evaluations: {text}"
    section = Section("The same seeds with 4, 8 and 20 evaluations", summary, [figure])
    return Part("evaluations", section, errors)


def calibrated(pipe: Pipeline, world: World, table: Path, steps: int = 5) -> Part:
    """The same noise and evaluations by the pipeline's own scheduler and by the table that ships, against the limit."""
    prompts = [prompt for prompt in shown(world) for _ in range(2)]
    seeds, size = list(range(len(prompts))), len(prompts)
    fine = sample(pipe, prompts, seeds=seeds, config=SampleConfig(steps=60, order=3, grid="log-snr"))
    ours = sample(pipe, prompts, seeds=seeds, config=SampleConfig(solver=table))
    stock = _stock(pipe, prompts, seeds, steps, output="latent")
    std = (fine.latents - fine.latents.mean(0)).square().mean().sqrt()
    errors = {
        name: float((made - fine.latents).flatten(1).square().mean(1).sqrt().mean() / std)
        for name, made in (("stock", stock), ("ours", ours.latents))
    }
    rows = torch.cat([images[::2] for images in (decode_latents(pipe, stock), ours.images, fine.images)])
    caption = f"From top: {type(pipe.scheduler).__name__}, our table, 60 evaluations."
    figure = Figure(image_grid(rows, columns=size // 2), caption)
    summary = f"error {errors['stock']:.3f} with the pipeline's scheduler, {errors['ours']:.3f} with our table"
    section = Section(f"The same noise with {steps} evaluations", summary, [figure])
    return Part("solvers", section, {**errors, "steps": steps}, errors["ours"] < errors["stock"])


def judged(pipe: Pipeline, world: World, num_images: int) -> Part:
    """Prompts from held-out templates, read back by the second judge, against what the card says."""
    prompts, labels = world.source.ask(num_images, held_out=True)
    made = sample(pipe, prompts, seeds=range(num_images))
    right = judge_images(world.judge(second=True), made.images)[1].argmax(1) == labels
    accuracy, expected = float(right.float().mean()), world.card.get("default_accuracy", 0.0)
    summary = f"the second judge reads {accuracy:.1%} of {num_images} images as asked"
    if expected:
        summary += f" (measured on 10,000: {expected:.1%}; real test images: {world.card['real_test_accuracy']:.1%})"
    values = {"judge_accuracy_second": accuracy, "images": num_images, "card": expected}
    slack = 4 * (expected * (1 - expected) / num_images) ** 0.5
    return Part("quality", Section("Does it show what was asked", summary), values, accuracy >= expected - slack)


def known(pipe: Pipeline, world: World) -> Part:
    """What the network knows about its data, from few calls: the error curve, with and without the label."""
    config = InformationConfig(calls=160, batch_size=32, curve_levels=20, curve_batches=2, levels=20, ode_steps=0)
    try:
        train, test = world.source.measuring()
    except MissingError as error:
        return Part("information", Section("What the network knows about its data", f"left out: {error}"), {})
    prompt = partial(world.captions.prompt, template=0, held_out=True)
    profile = pipeline_information(pipe, train, test, prompt, config)
    bits, figure = profile.bits_per_dim, Figure(plot_information(profile, world.name), "Bars are two standard errors.")
    summary = f"{bits.value:.2f} +- {bits.stderr:.2f} bits per latent dimension from {profile.network_calls} calls"
    section = Section("What the network knows about its data", summary, [figure])
    return Part("information", section, {"bits_per_dim": bits.value, "bits_per_dim_stderr": bits.stderr})


def speed(pipe: Pipeline, world: World) -> Part:
    """Seconds an image against the plain pipeline call, batch 1, 20 evaluations, median of 5 after 7 to warm up."""
    prompt = world.captions.prompt(7)
    times: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(12):
        times["ours"].append(_seconds(lambda: sample(pipe, prompt, seeds=[0])))
        times["stock"].append(_seconds(lambda: _stock(pipe, [prompt], [0], 20, output="pt")))
    ours, stock = (statistics.median(times[name][7:]) for name in ("ours", "stock"))
    summary = f"{stock / ours:.2f} times the images per second of the plain pipeline call, one image at a time"
    table = [
        ("call", "milliseconds an image"),
        ("logsnr.sample", f"{ours * 1e3:.0f}"),
        ("pipeline", f"{stock * 1e3:.0f}"),
    ]
    return Part("speed", Section("Speed", summary, table=table), {"ratio": stock / ours, "ours": ours, "stock": stock})


def verified(pipe: Pipeline, world: World) -> Part:
    """The plain pipeline call and ours agree, and a seed gives the same image alone and in a batch."""
    prompt, seeds = world.captions.prompt(8), list(range(8))
    config = SampleConfig(order=pipe.scheduler.config.get("solver_order", 1))
    ours = sample(pipe, prompt, seeds=seeds, config=config)
    stock = _stock(pipe, [prompt] * 8, seeds, 20, output="latent")
    parity = float((ours.latents - stock).abs().max())
    alone = float((sample(pipe, prompt, seeds=[5], config=config).images[0] - ours.images[5]).abs().max())
    summary = f"the plain pipeline's latents differ by at most {parity:.1e}, seed 5 alone and among 8 by {alone:.1e}"
    values = {"parity": parity, "alone": alone}
    return Part("verified", Section("Checked", summary), values, parity <= 1e-4 and alone <= 2 / 255)


def _stock(pipe: Pipeline, prompts: list[str], seeds: list[int], steps: int, *, output: str) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    called: Any = pipe(prompts, num_inference_steps=steps, guidance_scale=2.0, generator=generators, output_type=output)
    return called.images


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
