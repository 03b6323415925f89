"""What a network's output means: conversions from every prediction kind to clean data and noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level, Prediction
from logsnr.schedules.schedule import is_flow

Kind = Literal["eps", "x0", "v", "flow"]
_DIFFUSERS: Mapping[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The prediction kind that a diffusers scheduler configuration names.

    Raises:
        UnsupportedError: an unknown ``prediction_type``.
    """
    if is_flow(config):
        return "flow"
    name = config.get("prediction_type", "epsilon")
    if name not in _DIFFUSERS:
        raise UnsupportedError(f"prediction_type {name!r} is not known: use one of {', '.join(_DIFFUSERS)}")
    return _DIFFUSERS[name]


def check_start(kind: Kind, level: Level) -> None:
    """Refuse to start noise prediction where no data is left: eps says nothing about x0 at alpha = 0.

    Raises:
        InputError: kind is "eps" and alpha is 0.
    """
    if kind == "eps" and level.alpha == 0:
        raise InputError("an eps network cannot start at alpha = 0: its output holds no data there; use v, flow or x0")


def predict(kind: Kind, xt: Tensor, output: Tensor, level: Level) -> Prediction:
    """Clean data and noise from a network's output at a level, for xt = alpha * x0 + sigma * eps.

    ``v`` is alpha * eps - sigma * x0 (2202.00512), also off the unit circle; ``flow`` is eps - x0 for alpha = 1 - t and
    sigma = t. A form that would divide by an exact zero is replaced by its limit-free part: at sigma = 0 the noise of
    an x0 output is 0.

    Raises:
        InputError: unknown kind.
    """
    alpha, sigma = level.alpha, level.sigma
    if kind == "eps":
        return Prediction((xt - sigma * output) / alpha, output)
    if kind == "x0":
        return Prediction(output, (xt - alpha * output) / sigma if sigma else xt * 0)
    if kind == "v":
        scale = alpha * alpha + sigma * sigma
        return Prediction((alpha * xt - sigma * output) / scale, (sigma * xt + alpha * output) / scale)
    if kind == "flow":
        scale = alpha + sigma
        return Prediction((xt - sigma * output) / scale, (xt + alpha * output) / scale)
    raise InputError(f"unknown prediction kind {kind!r}: use one of {', '.join(get_args(Kind))}")


def output_of(kind: Kind, prediction: Prediction, level: Level) -> Tensor:
    """What a network of this kind would have said: the inverse of ``predict``.

    Raises:
        InputError: unknown kind.
    """
    if kind == "eps":
        return prediction.eps
    if kind == "x0":
        return prediction.x0
    if kind == "v":
        return level.alpha * prediction.eps - level.sigma * prediction.x0
    if kind == "flow":
        return prediction.eps - prediction.x0
    raise InputError(f"unknown prediction kind {kind!r}: use one of {', '.join(get_args(Kind))}")
