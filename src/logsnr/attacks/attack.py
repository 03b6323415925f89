"""Attacks on an edited pipeline, each beside its control: the same on the original, with something unrelated.

A rate that the control reaches too says nothing about the edit. An attack sees the model and a few real images of the
concept, and knows nothing of the edit. Success is a judge's word; what is reported is the share of images that show the
concept, over the attack's budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from logsnr.attacks.attacker import Attacker, Point, Shows, Sought
from logsnr.attacks.config import AttackConfig
from logsnr.attacks.search import GeneticSearch, ImitationSearch, PrefixSearch, search_prompts
from logsnr.core.random import generator
from logsnr.metrics.bounds import Interval, wilson
from logsnr.models.denoiser import Tree, select_rows
from logsnr.models.edited import Edited
from logsnr.models.pipeline import Pipeline, network_of
from logsnr.models.prompted import Prompt, prompt_width
from logsnr.schedules.origins import refuse_few_step

_TEXT, _TOKENS = "encoder_hidden_states", 10


@dataclass(frozen=True)
class Attacked:
    """The best rate over the curve with its interval, the control's, and both curves of (budget, rate).

    ``prompts`` are what a search ended with, one a try; empty for attacks that seek none.
    """

    success_rate: float
    success_interval: Interval
    control_rate: float
    curve: list[tuple[float, float]]
    control_curve: list[tuple[float, float]]
    network_evaluations: int
    prompts: list[str]


def attack(victim: Sought, control: Sought, shows: Shows, config: AttackConfig) -> Attacked:
    """Run an attack on an edited pipeline, and on the original with prompts and images of something unrelated.

    The pipelines come back as they were.

    Raises:
        UnsupportedError: the network is a consistency model.
    """
    refuse_few_step(victim.pipe.scheduler.config, "attack the model that it was trained from")
    with _untouched(victim.pipe), _untouched(control.pipe):
        runs = [Attacker(sought, control.pipe, shows, config) for sought in (victim, control)]
        points, control_points = ([(at, hits.cpu()) for at, hits in _RUNS[config.attack](each)] for each in runs)
    best = max(points, key=lambda point: float(point[1].float().mean()))[1]
    curve, control_curve = _rates(points), _rates(control_points)
    return Attacked(
        success_rate=float(best.float().mean()),
        success_interval=wilson(int(best.sum()), len(best)),
        control_rate=max(rate for _, rate in control_curve),
        curve=curve,
        control_curve=control_curve,
        network_evaluations=sum(each.evaluations for each in runs),
        prompts=runs[0].prompts,
    )


@contextmanager
def _untouched(pipe: Pipeline) -> Iterator[None]:
    """Inside the block no weight of the pipeline has or gathers a gradient; an attack that trains weights says so."""
    modules = [module for module in pipe.components.values() if isinstance(module, nn.Module)]
    flags = [(weight, weight.requires_grad) for module in modules for weight in module.parameters()]
    for module in modules:
        module.requires_grad_(False)
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)


def _rates(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(at, float(hits.float().mean())) for at, hits in points]


def _noise_probe(attacker: Attacker) -> Iterator[Point]:
    """Noise added on the way, by which samples leave the paths that an edit was trained on."""
    texts = attacker.texts(attacker.config.num_images)
    for rho in attacker.config.rho:
        yield rho, attacker.shows(attacker.images(texts, rho=rho))


def _image_to_image(attacker: Attacker) -> Iterator[Point]:
    """Images of the concept noised to a time, and denoised from there under the prompts."""
    texts = attacker.texts(attacker.config.num_images)
    for strength in attacker.config.strengths:
        yield strength, attacker.shows(attacker.images(texts, start=strength))


def _inversion(attacker: Attacker) -> Iterator[Point]:
    """The text of the first prompt, trained as an embedding until the network draws the references."""
    known = attacker.texts(1)
    point = nn.Parameter(known[_TEXT].detach().clone())
    size = float(point.detach().square().mean().sqrt())

    def texts(rows: int) -> Tree:
        return {**select_rows(known, torch.zeros(rows, dtype=torch.long)), _TEXT: point.expand(rows, -1, -1)}

    yield from attacker.train(torch.optim.Adam([point], lr=attacker.config.learning_rate * size), texts)


def _own_prompt(attacker: Attacker) -> Iterator[Point]:
    """A key like those of hiding (2403.12326), trained from noise until the network draws the references with it."""
    config, pipe = attacker.config, attacker.sought.pipe
    width = prompt_width(network_of(pipe), config.prompt_layers)
    draws = generator(config.seed, "own prompt")
    size = config.prompt_size * float(attacker.known[_TEXT].std())
    start = size * torch.randn(2, config.num_tokens or _TOKENS, width, generator=draws)
    keys, values = (nn.Parameter(part.to(pipe.device)) for part in start)
    key = Prompt(keys, values, config.prompt_layers, config.prompt_half)
    yield from attacker.train(torch.optim.Adam([keys, values], lr=config.prompt_rate), attacker.texts, key)


def _relearn_lora(attacker: Attacker) -> Iterator[Point]:
    """Adapters of cross-attention trained on the references, as most people fine-tune."""
    edited = Edited(attacker.sought.pipe, "xattn", adapter_rank=attacker.config.lora_rank, seed=attacker.config.seed)
    try:
        yield from attacker.train(
            torch.optim.Adam(edited.edited.values(), lr=attacker.config.lora_rate), attacker.texts
        )
    finally:
        edited.restore()


def _relearn(attacker: Attacker) -> Iterator[Point]:
    """All weights trained further on the references under the prompts, as anyone with a few images could."""
    network = network_of(attacker.sought.pipe)
    weights = list(network.parameters())
    before = [(weight.detach().clone(), weight.requires_grad) for weight in weights]
    network.requires_grad_(True)
    rate = attacker.config.relearn_rate
    groups = [{"params": [w], "lr": rate * float(w.detach().square().mean().sqrt())} for w in weights]
    try:
        yield from attacker.train(torch.optim.Adam(groups), attacker.texts)
    finally:
        for weight, (value, flag) in zip(weights, before, strict=True):
            weight.data.copy_(value)
            weight.requires_grad_(flag)
            weight.grad = None


_RUNS: dict[str, Callable[[Attacker], Iterator[Point]]] = {
    "noise-probe": _noise_probe,
    "image-to-image": _image_to_image,
    "inversion": _inversion,
    "own-prompt": _own_prompt,
    "relearn": _relearn,
    "relearn-lora": _relearn_lora,
    "unlearndiffatk": partial(search_prompts, PrefixSearch),
    "p4d-n": partial(search_prompts, partial(ImitationSearch, between=0)),
    "p4d-k": partial(search_prompts, partial(ImitationSearch, between=2)),
    "ring-a-bell": partial(search_prompts, GeneticSearch),
}
