"""Grids: the levels at which a solver evaluates the network, noisiest first, ending at clean data.

Every grid of N evaluations has N + 1 levels, is strictly monotone, and is used exactly as given. Below, s = sigma /
alpha; ``start`` and ``end`` are the times of the first and of the last noisy level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from numpy.typing import NDArray
from scipy import stats

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.curve import Curve
from logsnr.schedules.schedule import Schedule, levels_at, levels_of

DATA = Level(0.0, 1.0, 0.0)


def check_steps(steps: int) -> None:
    """Refuse a number of steps below 1.

    Raises:
        InputError: steps < 1.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}: sampling needs at least 1 step")


def check_grid(levels: Sequence[Level]) -> list[Level]:
    """The levels as a list, refused unless their log-SNR rises strictly.

    Raises:
        InputError: fewer than two levels, or a repeated or falling log-SNR.
    """
    if len(levels) < 2:
        raise InputError("a grid needs at least two levels: a start and an end")
    for here, there in pairwise(levels):
        if not there.log_snr > here.log_snr:
            raise InputError(f"the grid does not fall strictly at t = {here.t:g} -> {there.t:g}: order it by noise")
    return list(levels)


def uniform_time(schedule: Schedule, steps: int, *, start: float = 1.0) -> list[Level]:
    """Levels equally spaced in t from ``start`` to 0 (diffusers calls this trailing)."""
    check_steps(steps)
    return check_grid([*levels_at(schedule, [start * (1 - i / steps) for i in range(steps)]), DATA])


def uniform_log_snr(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3) -> list[Level]:
    """Levels equally spaced in log-SNR, then clean data (diffusers' exponential)."""
    first, last = _noise_ends(schedule, steps, start, end)
    return grid_of_noise(schedule, np.geomspace(first, last, steps))


def early_log_snr(schedule: Schedule, steps: int, *, start: float = 1.0) -> list[Level]:
    """``uniform_log_snr`` that leaves the noise at s = 0.6 / steps, if that is before its end: for few steps."""
    first, last = _noise_ends(schedule, steps, start, 1e-3)
    return grid_of_noise(schedule, np.geomspace(first, min(max(last, 0.6 / steps), first), steps))


def karras(
    schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3, grid_exponent: float = 7.0
) -> list[Level]:
    """Levels equally spaced in s ** (1 / grid_exponent) (2206.00364, eq. 5), then clean data."""
    first, last = (value ** (1 / grid_exponent) for value in _noise_ends(schedule, steps, start, end))
    return grid_of_noise(schedule, np.linspace(first, last, steps) ** grid_exponent)


def beta_quantiles(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3) -> list[Level]:
    """Levels at quantiles of a Beta(0.6, 0.6) law between the ends of s (2407.12173), then clean data."""
    first, last = _noise_ends(schedule, steps, start, end)
    shares = stats.beta.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6)
    return grid_of_noise(schedule, last + shares * (first - last))


def tangent(schedule: Schedule, steps: int, *, start: float = 1.0, data_std: float = 1.0) -> list[Level]:
    """Levels equally spaced in the angle atan(s / data_std); infinite noise at the start is welcome."""
    check_steps(steps)
    level = levels_at(schedule, [start])[0]
    angle = math.atan2(level.sigma, data_std * level.alpha)
    return _from(level, schedule, data_std * np.tan(angle * (1 - np.arange(1, steps) / steps)))


def align_your_steps(
    schedule: Schedule, steps: int, *, model: Literal["StableDiffusion", "StableDiffusionXL"] = "StableDiffusion"
) -> list[Level]:
    """The published levels of Align Your Steps (2404.14507) for Stable Diffusion 1.5 or XL, then clean data.

    They are for 10 steps; for other numbers log(s) is interpolated linearly over their places, as the authors advise.

    Raises:
        InputError: the schedule is not that of Stable Diffusion.
    """
    check_steps(steps)
    table = np.log(AysSchedules[f"{model}Sigmas"][:-1])
    last = float((-schedule.log_snr(torch.ones((), dtype=torch.float64)) / 2).exp())
    if not abs(math.log(last) - table[0]) < 0.01:
        raise InputError(
            f"Align Your Steps has no levels for this model: its noise ends at sigma / alpha = {last:.4g}, that of "
            f"Stable Diffusion at {math.exp(table[0]):.4g}; use log-snr or tangent, or calibrate"
        )
    places = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(table)), table)
    return grid_of_noise(schedule, np.exp(places))


def entropic(
    schedule: Schedule, steps: int, error: Curve, *, start: float = 1.0, power: float = 0.5, tilt: float = 0.0
) -> list[Level]:
    """Levels with equal shares of the integral of (error / s^2)^power s^tilt over log(s), from ``start`` to s = 0.01.

    ``error`` is the mean squared error per dimension of the denoiser over log(alpha / sigma) (2504.13612 in spirit).
    """
    first, _ = _noise_ends(schedule, steps, start, start)
    log_s = np.linspace(math.log(first), math.log(0.01), 2001)
    rate = (np.maximum(error(-log_s), 1e-12) / np.exp(2 * log_s)) ** power * np.exp(tilt * log_s)
    share = np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)])
    return grid_of_noise(schedule, np.exp(np.interp(np.linspace(0, share[-1], steps), share, log_s)))


def grid_of_noise(schedule: Schedule, noise: Sequence[float] | NDArray[np.float64]) -> list[Level]:
    """The levels at falling values of s = sigma / alpha, then clean data.

    Raises:
        InputError: the values are not positive or do not fall strictly.
    """
    values = np.asarray(noise, dtype=np.float64)
    if not (values > 0).all():
        raise InputError("a grid of sigma / alpha needs positive values: leave out the 0 at its end")
    return check_grid([*levels_of(schedule, (-2 * np.log(values)).tolist()), DATA])


def _from(first: Level, schedule: Schedule, noise: NDArray[np.float64]) -> list[Level]:
    """A first level that may be infinite noise, then ``grid_of_noise``."""
    return check_grid([first, *levels_of(schedule, (-2 * np.log(noise)).tolist()), DATA])


def _noise_ends(schedule: Schedule, steps: int, start: float, end: float) -> tuple[float, float]:
    """s at the two ends, both finite."""
    check_steps(steps)
    times = torch.tensor([start, end], dtype=torch.float64)
    first, last = (-schedule.log_snr(times) / 2).exp().tolist()
    if not math.isfinite(first):
        raise InputError("this grid cannot start at infinite noise: choose start < 1, or the grid time or tangent")
    return first, last


GRIDS: Mapping[str, Callable[..., list[Level]]] = {
    "time": uniform_time,
    "log-snr": uniform_log_snr,
    "log-snr-early": early_log_snr,
    "karras": karras,
    "beta": beta_quantiles,
    "tangent": tangent,
    "ays-sd": partial(align_your_steps, model="StableDiffusion"),
    "ays-sdxl": partial(align_your_steps, model="StableDiffusionXL"),
}
