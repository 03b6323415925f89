"""The arms of the erasure benchmark: every method with its one knob of strength, on the same targets and lists."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from erasure_tasks import Task
from torch import Tensor

from logsnr.core.random import generator
from logsnr.erasure.adversary import Gumbel
from logsnr.erasure.candidates import text_distances
from logsnr.erasure.config import EraseConfig, preset
from logsnr.erasure.erase import erase, make_method
from logsnr.erasure.method import OutputErasure
from logsnr.models.delta import Delta
from logsnr.models.denoiser import select_rows
from logsnr.models.guidance import SAFE
from logsnr.models.pipeline import network_of
from logsnr.train.config import FitConfig
from logsnr.train.loop import fit

STEP = 0.01
"""What a weight moves at most in one step of training, as a share of the weights' size."""
SNAPSHOTS = (10, 15, 20, 30, 40, 60, 80, 120, 160, 240)
LONGER = (*SNAPSHOTS, 360, 480, 720, 960)
"""For a method whose steps add up slowly."""
SCALES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Weights of the targets in closed forms."""


@dataclass(frozen=True)
class Snapshot:
    """An edit at one strength: the changed parameters, and what it took; or a way to sample without any edit."""

    strength: float
    tensors: dict[str, Tensor]
    evaluation_equivalents: int
    negative: str = ""
    guidance: float | None = None
    safe: str = "none"
    more: dict[str, Any] = field(default_factory=dict)


def trained(
    name: str,
    *,
    protect: bool = False,
    nearest: bool = False,
    step: float = STEP,
    snapshots: tuple[int, ...] = SNAPSHOTS,
    centers: int = 100,
    **changes: Any,
) -> Callable[[Any, Task], Generator[Snapshot, None, None]]:
    """An arm that trains; its strengths are moments of one run.

    ``protect`` projects all that the task allows, ``nearest`` preserves the kept name that is nearest to a target.
    """

    def run(pipe: Any, task: Task) -> Generator[Snapshot, None, None]:
        steps = snapshots[-1]
        fixed = {"strength": step * steps, "candidates": task.candidates(centers)}
        if protect:
            fixed["protected"] = task.prompts
        if nearest:
            known = task.kept or task.words
            fixed["preserved"] = (known[int(text_distances(pipe, task.targets, known).amin(0).argmin())],)
        fit_config = FitConfig(steps=steps, batch_size=8, warmup=0, clip=None, seed=task.seed)
        method = make_method(pipe, replace(_config(name, task), **{**fixed, **changes}, run=fit_config))
        found: Snapshot | None = None
        try:
            for progress in fit(method, None, fit_config):
                if progress.step in snapshots:
                    found = _snapshot(progress.step, method.delta(), method.scores.cost.evaluation_equivalents)
                    yield found
        finally:
            if found and isinstance(method.adversary, Gumbel):
                found.more.update(hits(method))
            method.scores.restore()

    return run


def closed(name: str, **changes: Any) -> Callable[[Any, Task], Generator[Snapshot, None, None]]:
    """An arm in closed form; its strengths are weights of the targets."""

    def run(pipe: Any, task: Task) -> Generator[Snapshot, None, None]:
        for scale in SCALES:
            config = replace(_config(name, task), closed_form_scale=scale, **changes)
            delta = erase(pipe, config=replace(config, run=replace(config.run, seed=task.seed)))
            yield _snapshot(scale, delta, delta.record.metrics.get("evaluation_equivalents", 0))

    return run


def hits(method: OutputErasure, count: int = 4) -> dict[str, float]:
    """How often the adversary draws the candidate that is hurt most, beside blind draws; over targets and noises."""
    adversary, levels, draws = method.adversary, method.scores.levels, generator(0, "hits")
    chances, found = adversary.chances(), []
    for target in range(len(chances)):
        places = adversary.allowed[target].nonzero()[:, 0]
        for _ in range(count):
            place, _, told = levels.draw(float(torch.rand((), generator=draws)), 0.5)
            noise = torch.randn((1, *method.scores.shape), generator=draws)
            losses = method.search(noise, place, told, target, select_rows(adversary.texts, places))
            found.append((float(chances[target, places[losses.argmax()]]), 1 / len(places)))
    ours, blind = (sum(values) / len(found) for values in zip(*found, strict=True))
    return {"adversary_hit_rate": ours, "blind_hit_rate": blind}


def _snapshot(strength: float, delta: Delta, evaluation_equivalents: int) -> Snapshot:
    return Snapshot(strength, {k.partition(".")[2]: v for k, v in delta.tensors.items()}, evaluation_equivalents)


def _config(name: str, task: Task) -> EraseConfig:
    """The preset on the task; closed forms preserve all that the task allows, and erase in every trained template."""
    config = preset(name, *task.targets)
    if config.method in ("uce", "rece", "mace"):
        return replace(config, preserved=task.prompts, templates=task.templates)
    return config


def noise(pipe: Any, task: Task) -> Generator[Snapshot, None, None]:
    """No method: random changes of the size that training makes, as a control of damage."""
    from logsnr.models.parameters import select_parameters

    draws = generator(task.seed, "noise")
    chosen = {name: value.detach() for name, value in select_parameters(network_of(pipe), "xattn").items()}
    size = (sum(float(v.square().sum()) for v in chosen.values()) / sum(v.numel() for v in chosen.values())) ** 0.5
    change = {name: torch.randn(value.shape, generator=draws) for name, value in chosen.items()}
    for share in (0.1, 0.2, 0.4, 0.8):
        yield Snapshot(share, {name: value + share * size * change[name] for name, value in chosen.items()}, 0)


def negative(pipe: Any, task: Task) -> Generator[Snapshot, None, None]:
    """No edit: images are sampled with the targets as the negative prompt, at rising guidance."""
    for scale in (1.5, 2.0, 3.0, 5.0, 7.5):
        yield Snapshot(scale, {}, 0, negative=", ".join(task.targets), guidance=scale)


def safe(pipe: Any, task: Task) -> Generator[Snapshot, None, None]:
    """No edit: safe guidance (SLD) keeps away from the targets, in its four configurations."""
    for strength, name in enumerate(SAFE, 1):
        yield Snapshot(strength, {}, 0, negative=", ".join(task.targets), safe=name)


ADAPTED = ("SPM",)
"""Arms whose network has adapters while it trains: their snapshots cannot be measured before the end."""
ARMS: dict[str, Callable[[Any, Task], Generator[Snapshot, None, None]]] = {
    "EAP": trained("eap"),
    "ESD": trained("esd"),
    "ESD + x0": trained("esd-x0"),
    "UCE": closed("uce-tensor"),
    "UCE, empty prompt": closed("uce-tensor", preserved=("",)),
    "UCE, replace": closed("uce"),
    "CA": trained("ca", snapshots=LONGER),
    "EAP, exhaustive": trained("eap", adversary="exhaustive"),
    "EAP, random": trained("eap", adversary="random"),
    **{f"EAP, {k} steps": trained("eap", adversary_schedule="alternating", adversary_steps=k) for k in (2, 4, 8)},
    **{f"EAP, {n} centers": trained("eap", centers=n) for n in (20, 50, 200)},
    "EAP, fixed empty prompt": trained("eap", adversary="fixed", preserved=("",)),
    "EAP, as released": trained("eap", adversary_grad="edited", adversary_schedule="alternating"),
    "EAP, released scheme": trained("eap-paper", learning_rate=None),
    "EAP, projected": trained("eap-projected", protect=True, step=0.1),
    "EAP, robust": trained("robust"),
    "AdvUnlearn": trained("advunlearn"),
    "SPM": trained("spm"),
    "ESD, preserve": trained("esd-preserve"),
    "ESD, preserve nearest": trained("esd-preserve", nearest=True),
    "AGE": trained("age"),
    "RECE": closed("rece", closed_form_tokens="all"),
    "MACE": closed("mace"),
    "negative prompt": negative,
    "SLD": safe,
    "noise": noise,
}
MAIN = ("EAP, projected", "EAP", "ESD", "ESD + x0", "UCE", "CA")
