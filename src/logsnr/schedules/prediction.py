"""What a network's output means: conversions from every prediction kind to clean data and noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level, Prediction


class EDMOutput(str):
    """A kind that carries a number: EDM's raw output F for data of deviation ``data_std``, or -F (``sign`` -1)."""

    def __new__(cls, data_std: float, sign: float = 1.0) -> EDMOutput:
        self = super().__new__(cls, f"{'-' if sign < 0 else ''}F of data {data_std:g}")
        self.data_std, self.sign = data_std, sign
        return self

    def __reduce__(self) -> tuple[type[EDMOutput], tuple[float, float]]:  # how it is copied
        return EDMOutput, (self.data_std, self.sign)

    data_std: float
    sign: float


Kind = Literal["eps", "x0", "v", "flow", "score", "F"] | EDMOutput
_NAMES = ("eps", "x0", "v", "flow", "score", "F")


@dataclass(frozen=True)
class Linear:
    """A network's output as a combination of clean data and noise: output = of_x0 * x0 + of_eps * eps."""

    of_x0: float
    of_eps: float


def meaning(kind: Kind, level: Level, *, data_std: float = 1.0, rates: tuple[float, float] = (-1.0, 1.0)) -> Linear:
    """What an output of this kind is at a level, for xt = alpha * x0 + sigma * eps.

    ``eps`` and ``x0`` are themselves; ``score`` is -eps / sigma; ``v`` is alpha * eps - sigma * x0 (2202.00512), also
    off the unit circle; ``flow`` is alpha' x0 + sigma' eps with the ``rates`` (alpha', sigma') of the schedule, which
    is eps - x0 for rectified flow; ``F`` is EDM's raw output for data of deviation ``data_std`` (2206.00364).

    Raises:
        InputError: unknown kind, or a score at sigma = 0 where it is infinite.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "eps":
        return Linear(0.0, 1.0)
    if kind == "x0":
        return Linear(1.0, 0.0)
    if kind == "v":
        return Linear(-sigma, alpha)
    if kind == "flow":
        return Linear(*rates)
    if kind == "F" or isinstance(kind, EDMOutput):
        data_std, sign = (kind.data_std, kind.sign) if isinstance(kind, EDMOutput) else (data_std, 1.0)
        scale = sign * math.hypot(data_std * alpha, sigma)
        return Linear(sigma / (data_std * scale), -data_std * alpha / scale)
    if kind == "score":
        if sigma == 0:
            raise InputError("a score is infinite at sigma = 0: stop at a level with some noise")
        return Linear(0.0, -1 / sigma)
    raise InputError(f"unknown prediction kind {kind!r}: use one of {', '.join(_NAMES)}")


def x0_weights(kind: Kind, level: Level) -> tuple[float, float]:
    """(a, b) with x0 = a * xt + b * output, for schedulers that count microseconds."""
    means = meaning(kind, level)
    if kind == "x0":
        return 0.0, 1.0
    area = level.alpha * means.of_eps - level.sigma * means.of_x0
    return means.of_eps / area, -level.sigma / area


def noise_slope(kind: Kind, level: Level) -> float:
    """By how much the noise at a level changes with a network's output, for the same sample."""
    means = meaning(kind, level)
    return 1.0 if kind == "eps" else level.alpha / (level.alpha * means.of_eps - level.sigma * means.of_x0)


def check_start(kind: Kind, level: Level) -> None:
    """Refuse to start noise prediction where no data is left: eps says nothing about x0 at alpha = 0.

    Raises:
        InputError: kind is "eps" or "score" and alpha is 0.
    """
    if kind in ("eps", "score") and level.alpha == 0:
        raise InputError(
            f"an {kind} network cannot start at alpha = 0: its output holds no data there; use v, flow, F or x0"
        )


def predict(
    kind: Kind,
    xt: Tensor,
    output: Tensor,
    level: Level,
    *,
    data_std: float = 1.0,
    rates: tuple[float, float] = (-1.0, 1.0),
) -> Prediction:
    """Clean data and noise from a network's output at a level: ``meaning`` and xt = alpha * x0 + sigma * eps, solved.

    At sigma = 0 the noise of an x0 output, which nothing tells, is 0.

    Raises:
        InputError: unknown kind.
    """
    means = meaning(kind, level, data_std=data_std, rates=rates)
    if kind == "x0" and level.sigma == 0:
        return Prediction(output, xt * 0)
    area = level.alpha * means.of_eps - level.sigma * means.of_x0
    x0 = output if kind == "x0" else (means.of_eps * xt - level.sigma * output) / area
    eps = output if kind == "eps" else (level.alpha * output - means.of_x0 * xt) / area
    return Prediction(x0, eps)


def output_of(
    kind: Kind,
    prediction: Prediction,
    level: Level,
    *,
    data_std: float = 1.0,
    rates: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """What a network of this kind would have said: the inverse of ``predict``.

    Raises:
        InputError: unknown kind.
    """
    means = meaning(kind, level, data_std=data_std, rates=rates)
    if kind in ("eps", "x0"):
        return prediction.eps if kind == "eps" else prediction.x0
    return means.of_x0 * prediction.x0 + means.of_eps * prediction.eps
