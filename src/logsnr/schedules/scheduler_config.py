"""What a diffusers scheduler configuration says: the schedule, the prediction kind, and the levels that it visits."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level
from logsnr.schedules.families import EDM, VE, DiscreteVP, Flow, Preconditioned, zero_terminal
from logsnr.schedules.grids import DATA, check_grid, check_steps, grid_of_noise
from logsnr.schedules.origins import (
    BETAS,
    NOT_MAPPED,
    edm_exponent,
    first_line,
    is_consistency,
    is_edm,
    is_flow,
    origin_of,
)
from logsnr.schedules.prediction import EDMOutput, Kind
from logsnr.schedules.schedule import Schedule, levels_at, levels_of

_KINDS: Mapping[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The prediction kind that the configuration names.

    Raises:
        UnsupportedError: an unknown ``prediction_type``.
    """
    if is_flow(config):
        return "flow"
    name, edm = config.get("prediction_type", "epsilon"), is_edm(config)
    known = ("epsilon", "v_prediction", "consistency") if edm else tuple(_KINDS)
    if name not in known:
        raise UnsupportedError(f"prediction_type {name!r} is not known: use one of {', '.join(known)}")
    if edm:
        return EDMOutput(float(config["sigma_data"]), -1.0 if name == "v_prediction" else 1.0)
    return _KINDS[name]


def from_scheduler_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a network with this diffusers scheduler configuration was trained on.

    Networks with EDM's preconditioning are read in the scale that they see.

    Raises:
        UnsupportedError: the configuration has no betas and is of no flow or EDM model, or an option that cannot be
            honoured.
    """
    _check_mapped(config)
    if is_flow(config):
        return Flow()
    if is_edm(config):
        low, high = float(config["sigma_min"]), float(config["sigma_max"])
        geometric = config.get("sigma_schedule") == "exponential"
        law = VE(low, high) if geometric else EDM(low, high, edm_exponent(config))
        return Preconditioned(law, float(config["sigma_data"]))
    given = {name: config[name] for name in BETAS if config.get(name) is not None}
    try:
        betas = DDPMScheduler(**given).betas
    except NotImplementedError as error:
        raise UnsupportedError(f"beta_schedule {config.get('beta_schedule')!r} is not known to diffusers") from error
    chain = _with_noise(DiscreteVP(tuple(betas.double().tolist())), float(config.get("snr_shift_scale") or 1))
    return zero_terminal(chain) if config.get("rescale_betas_zero_snr") else chain


def _check_mapped(config: Mapping[str, Any]) -> None:
    """Refuse what a schedule and a prediction kind cannot say."""
    name, flow = config.get("origin") or origin_of(config) or "this scheduler", is_flow(config)
    if name in NOT_MAPPED:
        raise UnsupportedError(f"{name} is not mapped, for {NOT_MAPPED[name]}: keep it, or use another model")
    refused = {
        "invert_sigmas": flow and config.get("invert_sigmas"),
        "timestep_type": config.get("timestep_type") == "continuous" and kind_of(config) == "v",
        "use_flow_sigmas": config.get("use_flow_sigmas") and not flow,
    }
    for option in (option for option, holds in refused.items() if holds):
        raise UnsupportedError(f"{name} has {option}={config[option]!r}, which cannot be honoured: keep that scheduler")
    has_betas = any(config.get(option) is not None for option in ("beta_start", "beta_schedule", "trained_betas"))
    if not (flow or has_betas or is_edm(config)):
        raise UnsupportedError(
            f"{name} has no betas, no flow and not EDM's preconditioning, so that its schedule is not known: keep it"
        )


def timestep_of(config: Mapping[str, Any], level: Level) -> float:
    """What the network of a configuration is told at a level: its timestep, or EDM's log(sigma / alpha) / 4.

    A consistency model is told 1000 times that. Outside the range that it was trained on it is told its end.
    """
    if is_edm(config):
        least, most = (math.log(config[name]) / 4 for name in ("sigma_min", "sigma_max"))
        return min(max(-level.log_snr / 8, least), most) * _edm_unit(config)
    total = int(config.get("num_train_timesteps", 1000))
    return level.t * total if is_flow(config) else max(0.0, round(level.t * total - 1, 6))


def time_of(config: Mapping[str, Any], schedule: Schedule, timestep: float) -> float:
    """The time in the schedule at which the network is told ``timestep``: the inverse of ``timestep_of``."""
    if is_edm(config):
        return float(schedule.t_of(torch.tensor(-8 * timestep / _edm_unit(config), dtype=torch.float64)))
    total = int(config.get("num_train_timesteps", 1000))
    return timestep / total if is_flow(config) else (timestep + 1) / total


def levels_told(config: Mapping[str, Any], schedule: Schedule, timesteps: Sequence[float]) -> list[Level]:
    """The levels at which the network is told these timesteps, noisiest first, then clean data.

    Raises:
        InputError: a timestep is outside the schedule, or they do not fall strictly.
    """
    if is_edm(config):  # no time in between, which would round the first level out of [0, 1]
        levels = levels_of(schedule, [-8 * float(k) / _edm_unit(config) for k in timesteps])
    else:
        levels = levels_at(schedule, [time_of(config, schedule, float(k)) for k in timesteps])
    return check_grid([*levels, DATA])


def _edm_unit(config: Mapping[str, Any]) -> float:
    return 1000.0 if is_consistency(config) else 1.0


def _with_noise(chain: DiscreteVP, scale: float) -> DiscreteVP:
    """The chain with its signal-to-noise ratio divided by ``scale`` (CogVideoX, 2408.06072)."""
    if scale == 1:
        return chain
    kept = torch.log1p(-torch.tensor(chain.betas, dtype=torch.float64)).cumsum(0).exp()
    kept = kept / (scale + (1 - scale) * kept)
    ratios = torch.cat([kept[:1], kept[1:] / kept[:-1]])
    return DiscreteVP(tuple((1 - ratios).tolist()))


def rule_of(config: Mapping[str, Any]) -> str:
    """The name of the grid that a scheduler with this configuration follows, if it says so; else "scheduler"."""
    rules = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "log-snr", "use_beta_sigmas": "beta"}
    own = config.get("grid", "scheduler")
    return next((rule for flag, rule in rules.items() if config.get(flag)), own) if own == "scheduler" else own


def scheduler_grid(
    scheduler: Any,
    schedule: Schedule,
    steps: int,
    *,
    mu: float | None = None,
    sigmas: Sequence[float] | None = None,
) -> list[Level]:
    """The levels that a diffusers scheduler visits, with the timesteps that it tells the network.

    ``mu`` is what a pipeline with dynamic shifting computes from the image size, ``sigmas`` what it passes. Repeated
    levels (of schedulers that call the network twice) are visited once.

    Raises:
        InputError: the scheduler refuses this number of steps, or visits another.
        UnsupportedError: its levels cannot be ordered by noise.
    """
    check_steps(steps)
    name, visited = type(scheduler).__name__, copy.copy(scheduler)
    if scheduler.config.get("skip_prk_steps") is False:  # its Runge-Kutta steps would add levels
        visited = type(scheduler).from_config(scheduler.config, skip_prk_steps=True)
    try:
        given = {option: value for option, value in (("mu", mu), ("sigmas", sigmas)) if value is not None}
        visited.set_timesteps(**({} if sigmas is not None else {"num_inference_steps": steps}), **given)
    except (ValueError, AssertionError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{name} cannot take {steps} steps: {first_line(error)}") from error
    levels = _read(visited, schedule)
    if len(levels) != steps + 1:
        raise InputError(f"{name} visits {len(levels) - 1} levels in {steps} steps: take fewer steps or another grid")
    return levels


def _read(visited: Any, schedule: Schedule) -> list[Level]:
    """The levels of a scheduler after ``set_timesteps``."""
    timesteps, sigmas = [float(k) for k in visited.timesteps], getattr(visited, "sigmas", None)
    if timesteps[0] < timesteps[-1]:
        raise UnsupportedError(f"{type(visited).__name__} goes from data to noise: use a scheduler that generates")
    if sigmas is None or len(sigmas) < len(timesteps):
        return _read_chain(visited, timesteps)
    if is_edm(visited.config):
        return _read_sigmas(schedule, sigmas.tolist())
    flow, total = is_flow(visited.config), int(visited.config.get("num_train_timesteps", 1000))
    found: dict[float, float] = {}
    for timestep, sigma in zip(timesteps, sigmas.tolist(), strict=False):
        if not found or sigma <= min(found):  # several visits of a level: the last has its own timestep
            found[sigma] = timestep / total if flow else (timestep + 1) / total
    levels = [_level(t, sigma, flow=flow) for sigma, t in found.items()]
    if levels[0].t == 1 and float(schedule.alpha(torch.ones(()))) == 0:
        levels[0] = Level(1.0, 0.0, 1.0)  # diffusers writes a large number for infinite noise
    last = float(sigmas[-1])
    ends_clean = last == 0 or last >= min(found)  # a last step to where it already is becomes one to the data
    return check_grid([*levels, DATA if ends_clean else _level(1 / total, last, flow=flow)])


def _read_sigmas(schedule: Schedule, sigmas: Sequence[float]) -> list[Level]:
    """The levels at values of sigma / alpha; a last step to where it already is becomes one to the data."""
    return grid_of_noise(schedule, list(dict.fromkeys(sigma for sigma in sigmas if sigma > 0)))


def _level(t: float, sigma: float, *, flow: bool) -> Level:
    """A level from diffusers' sigma: sigma itself for flow models, sigma / alpha otherwise."""
    if flow:
        return Level(t, 1 - sigma, sigma)
    scale = math.hypot(1, sigma)
    return Level(t, 1 / scale, sigma / scale)


def _read_chain(visited: Any, timesteps: Sequence[float]) -> list[Level]:
    """The levels of a scheduler without sigmas, from its own table; it ends at clean data or at the first timestep."""
    table = visited.alphas_cumprod.double()

    def level(mark: int) -> Level:
        return Level((mark + 1) / len(table), math.sqrt(table[mark]), math.sqrt(1 - table[mark]))

    marks = sorted({round(k) for k in timesteps}, reverse=True)
    ends_clean = visited.config.get("set_alpha_to_one", True) or marks[-1] == 0
    return check_grid([*(level(mark) for mark in marks), DATA if ends_clean else level(0)])
