"""All numbers of a fitted solver at once: Gauss-Newton on its levels and coefficients, without gradients.

Step-wise fits aim at the reference's states; what counts is the sample. Here each number is nudged, the response of the
samples is measured through the network, and all numbers move together to where the linearised samples come closest
to the reference's. Held-out trajectories decide how far, and whether at all.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from logsnr.schedules.schedule import levels_of
from logsnr.solvers.fit import Fit, Run, combine, errors, kept
from logsnr.solvers.reference import Model, Progress, Reference, reach
from logsnr.solvers.table import ESTIMATES
from logsnr.solvers.weights import Array

NUDGE, LEVEL_NUDGE = 0.02, 0.04
"""Of a coefficient, times its feature's root mean square; of a log-SNR."""
DAMPINGS = (1e-2, 1e-3, 1e-5)
"""Levenberg-Marquardt dampings that are tried each round, over the mean curvature."""


def refine(
    model: Model,
    reference: Reference,
    fit: Fit,
    run: Run,
    fitted: int,
    rows: Tensor,
    rounds: int,
    progress: Progress = iter,
) -> Fit:
    """The fit after at most ``rounds`` rounds on the first ``fitted`` trajectories; the others judge each candidate.

    ``run`` is what the fit did on all of them from the reference's starts.
    """
    final, visits = run
    best = float(errors(final, reference)[fitted:].mean())
    for _ in progress(range(rounds)):
        seen = [part[:, :fitted] for part in visits]
        places, responses = responses_of(model, fit, seen, final[:fitted], rows[:fitted])
        weights = 1 / errors(final, reference)[:fitted].clamp_min(1e-3 * best)
        moves = _moves(responses, (reference.final - final)[:fitted], weights)
        candidates = [candidate for move in moves if (candidate := moved(fit, places, move, model))]
        runs = [candidate.run(model, rows, reference.states[0]) for candidate in candidates]
        found = [float(errors(made[0], reference)[fitted:].mean().nan_to_num(torch.inf)) for made in runs]
        if not found or not min(found) < best:
            break
        best, winner = min(found), found.index(min(found))
        fit, (final, visits) = candidates[winner], runs[winner]
    return fit


def evaluations(steps: int, fitted: int, total: int, rounds: int) -> int:
    """The most samples that ``refine`` sends through the network."""
    nudged = sum(min(step + 2, 1 + ESTIMATES) * (steps - 1 - step) + steps - step for step in range(steps))
    return rounds * (nudged * fitted + len(DAMPINGS) * steps * total)


def responses_of(
    model: Model, fit: Fit, visits: list[Tensor], final: Tensor, rows: Tensor
) -> tuple[list[tuple[int, int, float]], Tensor]:
    """The (step, column, unit) of every number, the last column being the log-SNR, and the samples' answers."""
    places, responses = [], []
    for step, (features, level) in enumerate(zip(visits, fit.levels, strict=True)):
        if not level.alpha:
            continue  # the step from infinite noise is exact
        following, earlier = combine(features, fit.coefficients[step]), kept(features, level)
        for column, feature in enumerate(features):
            unit = 1 / max(float(feature.square().mean().sqrt()), 1e-12)
            answer, _ = fit.run(model, rows, following + NUDGE * unit * feature, earlier, step + 1)
            places.append((step, column, unit))
            responses.append((answer - final) / NUDGE)
        nudged = _at(fit, _log_snr(fit) + LEVEL_NUDGE * np.eye(len(fit.levels))[step], model)
        answer, _ = nudged.run(model, rows, features[0], features[2:] if len(features) > 2 else None, step)
        places.append((step, -1, 1.0))
        responses.append((answer - final) / LEVEL_NUDGE)
    return places, torch.stack(responses)


def _moves(responses: Tensor, missing: Tensor, weights: Tensor) -> list[Array]:
    """The damped steps of least squares, in the numbers' units; each trajectory counts by its weight."""
    weighted = (responses * weights[:, None]).flatten(1)
    gram = (weighted @ responses.flatten(1).T).double().cpu().numpy()
    slope = (weighted @ missing.flatten()).double().cpu().numpy()
    curvature = np.trace(gram) / len(gram)
    return [np.linalg.solve(gram + damping * curvature * np.eye(len(gram)), slope) for damping in DAMPINGS]


def moved(fit: Fit, places: list[tuple[int, int, float]], move: Array, model: Model) -> Fit | None:
    """The fit with its numbers moved; none where its levels would leave their order."""
    numbers = np.column_stack([fit.coefficients, _log_snr(fit)])
    for (step, column, unit), value in zip(places, move, strict=True):
        numbers[step, column] += unit * value
    log_snr = numbers[:, -1].clip(*reach(model))
    if not all(here < there for here, there in pairwise(log_snr[not fit.levels[0].alpha :])):
        return None
    return replace(_at(fit, log_snr, model), coefficients=numbers[:, :-1].copy())


def _log_snr(fit: Fit) -> Array:
    return np.array([level.log_snr for level in fit.levels])


def _at(fit: Fit, log_snr: Array, model: Model) -> Fit:
    """The fit with other levels; infinite noise stays."""
    infinite = int(not fit.levels[0].alpha)
    return replace(fit, levels=(*fit.levels[:infinite], *levels_of(model.unit, log_snr[infinite:].tolist())))
