"""Calibration towards a distribution: a table's numbers moved until its images have the features of real ones.

A paired calibration repeats what the network's own fine solution makes, its faults included. Where real images are at
hand, the few numbers of a table can do more: each is nudged, the response of the images' features is measured, and all
move together to where the Frechet distance of the linearised features to the real ones is least. Held-out noises decide
how far, and whether at all. No gradient goes through a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.random import sample_noise
from logsnr.evaluation.config import MatchConfig
from logsnr.metrics.frechet import Moments, frechet_distance, frechet_to, moments
from logsnr.metrics.judge import Judge, judge_images
from logsnr.models.pipeline import Pipeline, decode_latents, denoiser_of, encode_prompts, latent_shape
from logsnr.solvers.fit import Fit, of_table, to_table
from logsnr.solvers.reference import Model, Progress
from logsnr.solvers.refine import evaluations, moved, responses_of
from logsnr.solvers.table import SolverTable

Features = Callable[[Tensor], Tensor]
"""Features (n, f) of clean samples (n, ...), as of a judge's that sees them decoded."""
_STEP = 0.05
"""The move of a number, in its unit, whose effect on the features is taken for their slope."""


@torch.no_grad()
def match_features(
    model: Model,
    noise: Tensor,
    table: SolverTable,
    features: Features,
    target: Moments,
    config: MatchConfig,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """The table with its numbers moved towards the target's features, and the record of it.

    ``noise`` (n, d) is standard normal, ``num_fit`` rows to fit and ``num_selection`` to judge, in the order of the
    model's conditioning. The record has ``before`` and ``after``, Frechet distances on the held-out noises, and the
    ``network_evaluations``.

    Raises:
        InputError: the rows of noise are not as many as the configuration needs, or the table holds no coefficients.
    """
    if len(noise) != config.num_fit + config.num_selection:
        raise InputError(f"matching needs {config.num_fit + config.num_selection} start noises, not {len(noise)}")
    task = _Task(model, noise, features, target, config)
    fit, before = of_table(table, model.unit), model.network_evaluations
    record = {"before": task.judge(fit)}
    best = record["before"]
    for _ in progress(range(config.rounds)):
        found = {task.judge(made): made for made in task.candidates(fit)}
        if not found or not min(found) < best:
            break
        best = min(found)
        fit = found[best]
    spent = model.network_evaluations - before
    return to_table(fit), record | {"after": best, "network_evaluations": spent}


def match(
    pipe: Pipeline,
    table: SolverTable,
    prompts: Sequence[str],
    judge: Judge,
    target: Moments,
    *,
    config: MatchConfig | None = None,
    progress: Progress = iter,
) -> tuple[SolverTable, dict[str, Any]]:
    """A pipeline's table moved towards real images, whose features the judge gives and ``target`` sums up.

    The table keeps its network, guidance scale and negative prompt; its record now has the distances and no errors.
    ``prompts`` are taken in turn: over all of them, what is asked for should be spread as in the real images.

    Raises:
        InputError: the table holds no coefficients.
    """
    config = config or MatchConfig()
    total, guided = config.num_fit + config.num_selection, table.guidance_scale > 1
    asked = [prompts[index % len(prompts)] for index in range(total)]
    cond = encode_prompts(pipe, asked, negative=table.negative, guided=guided)
    denoiser = denoiser_of(pipe, guidance_scale=table.guidance_scale, replay=True)
    model = Model(denoiser, denoiser.schedule, latent_shape(pipe), cond)
    noise = sample_noise(range(config.seed, config.seed + total), latent_shape(pipe)).to(pipe.device).flatten(1)

    def seen(samples: Tensor) -> Tensor:
        return judge_images(judge, decode_latents(pipe, samples))[0]

    made, record = match_features(model, noise, table, seen, target, config, progress)
    kept = {f"frechet_{name}": record[name] for name in ("before", "after")}
    return replace(table, log_snr=made.log_snr, coefficients=made.coefficients, record=kept), record


def price(steps: int, config: MatchConfig, *, guided: bool) -> int:
    """The most samples that matching sends through the network, known before it starts."""
    judged = (1 + config.rounds * len(config.penalties)) * config.num_selection * steps
    return (judged + evaluations(steps, config.num_fit, config.num_fit, config.rounds)) * (2 if guided else 1)


@dataclass(frozen=True)
class _Task:
    """What every round needs."""

    model: Model
    noise: Tensor
    features: Features
    target: Moments
    config: MatchConfig

    def judge(self, fit: Fit) -> float:
        """The Frechet distance on the held-out noises."""
        parts = torch.arange(self.config.num_fit, len(self.noise)).split(self.config.batch_size)
        found = torch.cat([self._seen(fit.run(self.model, part, self.noise[part])[0]) for part in parts])
        return frechet_distance(moments(found), self.target)

    def candidates(self, fit: Fit) -> list[Fit]:
        """The fit after the best linearised move at every penalty."""
        bases, slopes = [], []
        for part in torch.arange(self.config.num_fit).split(self.config.batch_size):
            final, visits = fit.run(self.model, part, self.noise[part])
            places, responses = responses_of(self.model, fit, visits, final, part)
            units = torch.tensor([unit for *_, unit in places], dtype=torch.float64)[:, None, None]
            bases.append(self._seen(final))
            answers = torch.stack([(self._seen(final + _STEP * way) - bases[-1]) / _STEP for way in responses])
            slopes.append(answers.double().cpu() / units)
        base, slope = torch.cat(bases).double().cpu(), torch.cat(slopes, 1) * units  # of the last part, as in places
        moves = [_best_move(base, slope, self.target, penalty) for penalty in self.config.penalties]
        made = [moved(fit, places, move.numpy(), self.model) for move in moves]
        return [candidate for candidate in made if candidate]

    def _seen(self, samples: Tensor) -> Tensor:
        return self.features(samples.reshape(-1, *self.model.shape))


@torch.enable_grad()
def _best_move(base: Tensor, slope: Tensor, target: Moments, penalty: float) -> Tensor:
    """The move (k,) with the least distance of base (n, f) + move @ slope (k, n, f), plus penalty times its square.

    The penalty is in units of the distance that the base has.
    """
    move = base.new_zeros(len(slope), requires_grad=True)
    optimiser = torch.optim.LBFGS([move], max_iter=60, line_search_fn="strong_wolfe")
    scale = float(frechet_to(base, target))

    def objective() -> Tensor:
        optimiser.zero_grad()
        reached = base + torch.einsum("k,knf->nf", move, slope)
        value = frechet_to(reached, target) / scale + penalty * move.square().sum()
        value.backward()
        return value

    optimiser.step(objective)
    return move.detach()
