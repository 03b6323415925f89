"""The weights of one exponential step, in float64: the linear part is exact, the rest a polynomial integrated exactly.

With x0 = A y + r the family reads dy = (1 + rho^2)[r - (1 - A) y] dl + sqrt(2) rho e^{-l} dW; r is a polynomial in l
through the evaluations at hand. A = 0 is data prediction. A = 1 is noise prediction: r = -e^{-l} eps there, and eps is
the polynomial (DPM-Solver, 2206.00927; DEIS in log(sigma / alpha), 2204.13902).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.curve import Curve

Array = NDArray[np.float64]
Rate = float | Callable[[Array], Array]
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_LEGENDRE = np.polynomial.legendre.legvander(_POINTS, 24)
# from values at the points to the integral from each point to 1, by that of the Legendre polynomials
_AHEAD = np.hstack([np.ones((24, 1)), _LEGENDRE[:, :23]]) - _LEGENDRE[:, 1:]
_AHEAD = _AHEAD / 2 @ (_LEGENDRE[:, :24] * _WEIGHTS[:, None]).T


@dataclass(frozen=True)
class StepWeights:
    """One step in numbers: x_there = linear * x + sum of values[j] * r_j + noise * n, r_0 at the newest node."""

    linear: float
    values: tuple[float, ...]
    noise: float


def combine(weights: StepWeights, x: Tensor, first: Tensor, history: Sequence[Tensor], noise: Tensor | None) -> Tensor:
    """linear * x + values[0] * first + values[1:] of the evaluations before, newest first, + noise; all like x.

    Raises:
        InputError: the step needs noise and got none.
    """
    moved = (x * weights.linear).add_(first, alpha=weights.values[0])
    for weight, value in zip(weights.values[1:], history, strict=False):
        moved.add_(value, alpha=weight)
    if not weights.noise:
        return moved
    if noise is None:
        raise InputError("a step with rho > 0 needs noise: pass one standard normal tensor a step")
    return moved.add_(noise, alpha=weights.noise)


@lru_cache(maxsize=4096)
def step_weights(
    here: Level, there: Level, nodes: tuple[Level, ...], rho: Rate = 0.0, linear: Rate = 0.0, midpoint: bool = False
) -> StepWeights:
    """The weights of the step from ``here`` to ``there`` with evaluations at ``nodes``.

    Exact at both ends: where sigma = 0 the step returns r_0 = x0, from alpha = 0 it is of first order. ``midpoint``
    weighs two nodes as DPM-Solver++ 2M does by default (2211.01095).

    Raises:
        InputError: the step leads to more noise.
    """
    if there.sigma == 0:
        return StepWeights(0.0, (there.alpha, *[0.0] * (len(nodes) - 1)), 0.0)
    step = there.log_ratio - here.log_ratio
    if not step > 0:
        raise InputError(f"a step must lead to less noise, not from t = {here.t:g} to {there.t:g}: order the grid")
    if here.alpha == 0:
        noisy = float(_at(rho, np.asarray(there.log_ratio))) > 0
        return StepWeights(0.0 if noisy else there.sigma / here.sigma, (there.alpha,), there.sigma if noisy else 0.0)
    return _finite(here, there, step, nodes, rho, linear, midpoint)


def inverse_weights(here: Level, there: Level, nodes: tuple[Level, ...]) -> StepWeights:
    """The weights of a noiseless step towards more noise: the same formula on a negative step.

    To alpha = 0 it is of first order and leaves sigma * eps.
    """
    if there.alpha == 0:
        kept = there.sigma / here.sigma
        return StepWeights(kept, (-kept * here.alpha,), 0.0)
    step = there.log_ratio - here.log_ratio
    return _finite(here, there, step, nodes, 0.0, 0.0, False)


def polynomial_weights(nodes: Sequence[float], end: float) -> list[float]:
    """Adams-Bashforth weights of variable steps: the polynomial through nodes, integrated from nodes[0] to ``end``."""
    u, du = _panels(np.array([0, end - nodes[0]]))
    return (_lagrange(np.array(nodes) - nodes[0], u.ravel()) @ du.ravel()).tolist()


def _finite(
    here: Level, there: Level, step: float, nodes: Sequence[Level], rho: Rate, linear: Rate, midpoint: bool
) -> StepWeights:
    """The weights by 24-point Gauss-Legendre on panels; ``u`` is the way behind ``here``."""
    u, du = _panels(_edges(here.log_ratio, step, rho, linear))
    # exp(-decay) is what is left at the end of a unit put in at u; it also carries the change of scale of the noise
    decay, whole = _decay(here.log_ratio, step, u, du, rho, linear)
    u, du, decay = u.ravel(), du.ravel(), decay.ravel()
    squared = _at(rho, here.log_ratio + u) ** 2
    tilt = float(linear == 1)  # noise prediction: e^u r is the polynomial
    gain = (1 + squared) * np.exp(-decay - tilt * u) * du
    offsets = np.array([node.log_ratio - here.log_ratio for node in nodes])
    if midpoint and len(nodes) == 2:
        slope = gain.sum() / 2 * step / -offsets[1]
        values = np.array([gain.sum() + slope, -slope])
    else:
        values = _lagrange(offsets, u) @ gain
    variance = (2 * squared * np.exp(2 * (step - u) - 2 * decay) * du).sum()
    return StepWeights(
        there.sigma / here.sigma * math.exp(step - whole),
        tuple((there.alpha * values * np.exp(tilt * offsets)).tolist()),
        there.sigma * math.sqrt(max(variance, 0.0)),
    )


def _edges(start: float, step: float, rho: Rate, linear: Rate) -> Array:
    """The ends of the panels: at most 1 wide, narrower at high rates, none across a corner of a curve."""
    steepest = 1 + float(_at(rho, np.linspace(start, start + step, 33)).max()) ** 2
    # what was put in longer ago than 750 decay times underflows
    first = step - math.copysign(min(abs(step), 750 / steepest), step) if linear == 0 and not callable(rho) else 0.0
    edges = np.linspace(first, step, math.ceil(abs(step - first) * max(1.0, steepest / 16)) + 1)
    corners = [point - start for rate in (rho, linear) if isinstance(rate, Curve) for point in rate.points]
    inside = [corner for corner in corners if 0 < corner < step]
    return np.unique([*edges, *inside]) if inside else edges


def _decay(start: float, step: float, u: Array, du: Array, rho: Rate, linear: Rate) -> tuple[Array, float]:
    """The integral of (1 + rho^2)(1 - A) from each u to the end of the step, and over the whole step."""
    if not callable(rho) and not callable(linear):
        rate = (1 + rho**2) * (1 - linear)
        return rate * (step - u), rate * step
    rates = (1 + _at(rho, start + u) ** 2) * (1 - _at(linear, start + u))
    panels = (rates * du).sum(1)
    later = panels[::-1].cumsum()[::-1] - panels
    return du.sum(1, keepdims=True) / 2 * (rates @ _AHEAD.T) + later[:, None], float(panels.sum())


def _panels(edges: Array) -> tuple[Array, Array]:
    """Points and weights between edges, falling ones included: (panels, 24) each."""
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half) + half * _POINTS, half * _WEIGHTS


def _lagrange(offsets: Array, u: Array) -> Array:
    """The Lagrange polynomials of the nodes at u: (nodes, points)."""
    rows = [
        np.prod([(u - b) / (a - b) for k, b in enumerate(offsets) if k != j], axis=0) * np.ones_like(u)
        for j, a in enumerate(offsets)
    ]
    return np.stack(rows)


def _at(rate: Rate, points: Array) -> Array:
    return np.asarray(rate(points)) if callable(rate) else np.full(np.shape(points), float(rate))
