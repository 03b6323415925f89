"""The choice of a calibrated solver's levels among the nodes of a reference."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.schedules.families import VariancePreserving
from logsnr.schedules.grids import beta_quantiles, early_log_snr, karras, tangent, uniform_log_snr
from logsnr.solvers.reference import END, Reference


def plan_nodes(reference: Reference, steps: int, fitted: int, ridge: float) -> tuple[int, ...]:
    """The ``steps`` nodes with the least sum of local errors, by dynamic programming: no call is made.

    A local error is what a fitted step leaves that starts from the reference's own state and last two estimates; all
    of them follow from one Gram matrix. From infinite noise the exact step leads to any node, with nothing behind.

    Raises:
        InputError: the reference has fewer nodes than steps, or one step starts from infinite noise.
    """
    infinite = reference.levels[0].alpha == 0
    states, estimates = reference.states[infinite:, :fitted], reference.estimates[infinite:, :fitted]
    count, steps = len(states), steps - infinite
    if steps < 1:
        raise InputError("one step from infinite noise is exact and leaves nothing to fit: use 2 steps or more")
    if count < steps:
        raise InputError(f"{steps + infinite} steps do not fit a reference of {count + infinite}: raise its steps")
    vectors = torch.cat([states, estimates]).flatten(1).double()
    cost = _local_errors((vectors @ vectors.T / vectors.shape[1]).cpu().numpy(), _weights(reference)[infinite:], ridge)
    best = np.full((count, count), np.inf)  # best[h, i]: the last two nodes chosen are h and i, h = i if i is the first
    if infinite:
        np.fill_diagonal(best, _first_errors(reference, fitted))
    else:
        best[0, 0] = 0.0
    back = []
    for _ in range(steps - 1):
        reach = best[:, :, None] + cost[:, :, :count]
        back.append(reach.argmin(0))
        best = reach.min(0)
    before, here = np.unravel_index(int((best + cost[:, :, count]).argmin()), best.shape)
    nodes = [int(here)]
    for choice in reversed(back):
        nodes.append(int(before))
        before, here = choice[before, here], before
    return (*range(infinite), *(node + infinite for node in reversed(nodes)))


def _weights(reference: Reference) -> np.ndarray:
    """How far an error of a state carries into the sample: 1 for data of unit deviation."""
    std = reference.data_std
    return np.array([std / np.hypot(std * level.alpha, level.sigma) for level in reference.levels])


def _local_errors(gram: np.ndarray, weights: np.ndarray, ridge: float) -> np.ndarray:
    """Root mean square errors [h, i, j] of the step i -> j after an evaluation at h; the last j is the clean sample.

    ``gram`` holds the mean products of all states, then all estimates; h = i stands for no earlier evaluation.
    """
    count = len(gram) // 2
    errors = np.full((count, count, count + 1), np.inf)
    targets, weights = np.append(np.arange(count), 2 * count - 1), np.append(weights, 1.0)
    for i in range(count):
        alone, earlier = np.array([[i, count + i]]), np.arange(i)
        after = np.stack([np.full_like(earlier, i), np.full_like(earlier, count + i), count + earlier], 1)
        for places, features in (([i], alone), (earlier, after)):
            reached = np.sqrt(np.maximum(_left(gram, features, targets, ridge), 0.0)) * weights
            errors[places, i, i + 1 :] = reached[:, i + 1 :]
    return errors


def _left(gram: np.ndarray, features: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """Mean squares (sets, targets) that ridge regression on each set of features (sets, f) leaves of each target."""
    inner = gram[features[:, :, None], features[:, None, :]]
    shift = ridge * np.maximum(np.einsum("hff->hf", inner), 1e-30)[:, :, None] * np.eye(features.shape[1])
    cross = gram[features][:, :, targets]
    found = np.linalg.solve(inner + shift, cross)
    return np.diag(gram)[targets] - 2 * (found * cross).sum(1) + np.einsum("hfj,hfg,hgj->hj", found, inner, found)


def _first_errors(reference: Reference, fitted: int) -> np.ndarray:
    """Root mean square errors of the exact step from infinite noise to each finite node."""
    start, estimate = reference.states[0, :fitted], reference.estimates[0, :fitted]
    reached = [level.sigma * start + level.alpha * estimate for level in reference.levels[1:]]
    missed = (reference.states[1:, :fitted] - torch.stack(reached)).flatten(1).double().square().mean(1).sqrt()
    return missed.cpu().numpy() * _weights(reference)[1:]


def snap_nodes(grid: str, reference: Reference, steps: int) -> tuple[int, ...]:
    """A well-known grid of ``steps`` levels, snapped to distinct nodes of the reference in log-SNR.

    Where the noise is infinite at first, that level takes the place of the grid's first.
    """
    infinite = reference.levels[0].alpha == 0
    values = np.array([level.log_snr for level in reference.levels[infinite:]])
    maker = {
        "log-snr": uniform_log_snr,
        "log-snr-early": early_log_snr,
        "karras": karras,
        "beta": beta_quantiles,
        "tangent": partial(tangent, data_std=reference.data_std),
    }[grid]
    unit = _Interval(values[0], values[-1])
    wanted = [level.log_snr for level in maker(unit, steps)[infinite:-1]]
    nodes: list[int] = []
    for place, value in enumerate(wanted):
        room = range(nodes[-1] + 1 if nodes else 0, len(values) - (len(wanted) - place) + 1)
        nodes.append(min(room, key=lambda node: abs(values[node] - value)))
    return (*range(infinite), *(node + infinite for node in nodes))


class _Interval(VariancePreserving):
    """log_snr linear from ``first`` at t = 1 to ``last`` at t = END, so that grids end where the reference does."""

    def __init__(self, first: float, last: float):
        self.first, self.last = first, last

    def log_snr(self, t: Tensor) -> Tensor:
        return self.last + (self.first - self.last) * (t.double() - END) / (1 - END)

    def t_of(self, log_snr: Tensor) -> Tensor:
        return END + (1 - END) * (log_snr.double() - self.last) / (self.first - self.last)
