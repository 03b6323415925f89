"""Grids: the levels at which a solver evaluates the network, noisiest first, ending at clean data.

Every grid of N evaluations has N + 1 levels, is strictly monotone, and is used exactly as given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level
from logsnr.schedules.schedule import Schedule, is_flow, levels_at

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
    return _down_to_data(schedule, [start * (1 - i / steps) for i in range(steps)])


def uniform_log_snr(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3) -> list[Level]:
    """Levels equally spaced in log-SNR between times ``start`` and ``end``, then clean data."""
    check_steps(steps)
    ends = schedule.log_snr(torch.tensor([start, end], dtype=torch.float64))
    if not bool(torch.isfinite(ends).all()):
        raise InputError("a grid uniform in log-SNR cannot start at infinite noise: choose start < 1 or grid time")
    return _at_log_snr(schedule, torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64)))


def karras(
    schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 1e-3, grid_exponent: float = 7.0
) -> list[Level]:
    """Levels equally spaced in (sigma / alpha) ** (1 / grid_exponent) (2206.00364, eq. 5), then clean data."""
    check_steps(steps)
    first, last = (-schedule.log_snr(torch.tensor([start, end], dtype=torch.float64)) / (2 * grid_exponent)).exp()
    if not bool(torch.isfinite(first)):
        raise InputError("a Karras grid cannot start at infinite noise: choose start < 1 or grid time")
    roots = torch.lerp(first, last, torch.linspace(0, 1, steps, dtype=torch.float64))
    return _at_log_snr(schedule, -2 * grid_exponent * roots.log())


def _at_log_snr(schedule: Schedule, values: torch.Tensor) -> list[Level]:
    return _down_to_data(schedule, schedule.t_of(values).tolist())


def _down_to_data(schedule: Schedule, times: Sequence[float]) -> list[Level]:
    """The levels at falling times, then clean data."""
    return check_grid([*levels_at(schedule, times), DATA])


GRIDS: Mapping[str, Callable[[Schedule, int], list[Level]]] = {
    "time": uniform_time,
    "log-snr": uniform_log_snr,
    "karras": karras,
}

_UNMAPPED = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
    "use_dynamic_shifting",
    "shift_terminal",
    "invert_sigmas",
)


def scheduler_grid(schedule: Schedule, config: Mapping[str, Any], steps: int) -> list[Level]:
    """The levels that a diffusers scheduler with this configuration visits, integer timesteps and all.

    Raises:
        UnsupportedError: the configuration asks for a grid that is not mapped.
    """
    check_steps(steps)
    for flag in _UNMAPPED:
        if config.get(flag):
            raise UnsupportedError(f"the scheduler option {flag} is not mapped: pass a grid, one of {', '.join(GRIDS)}")
    if is_flow(config):
        return _flow_grid(schedule, config, steps)
    total = int(config.get("num_train_timesteps", 1000))
    timesteps = _timesteps(config.get("timestep_spacing", "linspace"), total, steps, int(config.get("steps_offset", 0)))
    return _down_to_data(schedule, [(k + 1) / total for k in timesteps])


def _timesteps(spacing: str, total: int, steps: int, offset: int) -> list[int]:
    """Integer timesteps, largest first, by the three conventions of diffusers' multistep schedulers."""
    if steps > total - 1:
        raise InputError(f"{steps} steps are more than the {total} timesteps of the scheduler allow: use fewer")
    if spacing == "linspace":
        values = np.linspace(0, total - 1, steps + 1).round()[::-1][:-1]
    elif spacing == "leading":
        values = (np.arange(0, steps + 1) * (total // (steps + 1))).round()[::-1][:-1] + offset
    elif spacing == "trailing":
        values = np.arange(total, 0, -total / steps).round()[:steps] - 1
    else:
        raise UnsupportedError(f"timestep_spacing {spacing!r} is not known: use linspace, leading or trailing")
    return [int(value) for value in values]


def _flow_grid(schedule: Schedule, config: Mapping[str, Any], steps: int) -> list[Level]:
    """Flow-match Euler's sigmas: uniform in t, then shifted towards noise."""
    total, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
    ends = [shift * t / (1 + (shift - 1) * t) for t in (1.0, 1 / total)]
    times = np.linspace(ends[0], ends[1], steps)
    return _down_to_data(schedule, (shift * times / (1 + (shift - 1) * times)).tolist())
