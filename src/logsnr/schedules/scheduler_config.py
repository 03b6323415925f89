"""What a diffusers scheduler configuration says: the schedule, the prediction kind, and the levels that it visits."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.core.types import Level
from logsnr.schedules.families import DiscreteVP, Flow, zero_terminal
from logsnr.schedules.grids import DATA, check_grid, check_steps
from logsnr.schedules.prediction import Kind
from logsnr.schedules.schedule import Schedule

_KINDS: Mapping[str, Kind] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_OTHER_NETWORKS: Mapping[str, str] = {
    "FlowMapEulerDiscreteScheduler": "its network maps between two times",
    "HeliosDMDScheduler": "it works in stages of several resolutions",
    "HeliosScheduler": "it works in stages of several resolutions",
    "MiniMaxH3Scheduler": "its network points to the data and counts time from the noise",
    "PiflowScheduler": "its network makes several predictions at once",
}


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the configuration belongs to a flow model: flow-match schedulers have no betas."""
    return config.get("prediction_type") == "flow_prediction" or ("shift" in config and "beta_start" not in config)


def kind_of(config: Mapping[str, Any]) -> Kind:
    """The prediction kind that the configuration names.

    Raises:
        UnsupportedError: an unknown ``prediction_type``.
    """
    if is_flow(config):
        return "flow"
    name = config.get("prediction_type", "epsilon")
    if name not in _KINDS:
        raise UnsupportedError(f"prediction_type {name!r} is not known: use one of {', '.join(_KINDS)}")
    return _KINDS[name]


def from_scheduler_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a network with this diffusers scheduler configuration was trained on.

    Raises:
        UnsupportedError: the configuration has no betas and is of no flow model, or an option that cannot be honoured.
    """
    _check_mapped(config)
    if is_flow(config):
        return Flow()
    given = {name: config[name] for name in _BETAS if config.get(name) is not None}
    try:
        betas = DDPMScheduler(**given).betas
    except NotImplementedError as error:
        raise UnsupportedError(f"beta_schedule {config.get('beta_schedule')!r} is not known to diffusers") from error
    chain = _with_noise(DiscreteVP(tuple(betas.double().tolist())), float(config.get("snr_shift_scale") or 1))
    return zero_terminal(chain) if config.get("rescale_betas_zero_snr") else chain


def _check_mapped(config: Mapping[str, Any]) -> None:
    """Refuse what a schedule and a prediction kind cannot say."""
    name, flow = config.get("origin") or origin_of(config) or "this scheduler", is_flow(config)
    if name in _OTHER_NETWORKS:
        raise UnsupportedError(f"{name} is not mapped, for {_OTHER_NETWORKS[name]}: keep it, or use a plain flow model")
    refused = {
        "invert_sigmas": flow and config.get("invert_sigmas"),
        "timestep_type": config.get("timestep_type") == "continuous" and kind_of(config) == "v",
        "use_flow_sigmas": config.get("use_flow_sigmas") and not flow,
    }
    for option in (option for option, holds in refused.items() if holds):
        raise UnsupportedError(f"{name} has {option}={config[option]!r}, which cannot be honoured: keep that scheduler")
    if not flow and all(config.get(option) is None for option in ("beta_start", "beta_schedule", "trained_betas")):
        has = "sigmas instead of betas" if "sigma_max" in config or "sigma_data" in config else "no betas and no flow"
        raise UnsupportedError(f"{name} has {has}, which is not mapped: use a model with betas or flow")


def _with_noise(chain: DiscreteVP, scale: float) -> DiscreteVP:
    """The chain with its signal-to-noise ratio divided by ``scale`` (CogVideoX, 2408.06072)."""
    if scale == 1:
        return chain
    kept = torch.log1p(-torch.tensor(chain.betas, dtype=torch.float64)).cumsum(0).exp()
    kept = kept / (scale + (1 - scale) * kept)
    ratios = torch.cat([kept[:1], kept[1:] / kept[:-1]])
    return DiscreteVP(tuple((1 - ratios).tolist()))


def origin_of(config: Mapping[str, Any]) -> str:
    """The scheduler class that a configuration belongs to; "" if nothing tells.

    Files name it. A live scheduler's configuration does not, but begins with the arguments of its constructor.
    """
    if isinstance(config.get("_class_name"), str):
        return config["_class_name"]
    keys, found = [name for name in config if not name.startswith("_")], []
    for kind in _scheduler_kinds(SchedulerMixin):
        names, name = parameters(kind), kind.__name__
        if names and keys[: len(names)] == list(names):
            unchosen = [option for option in config.get("_use_default_values") or () if option in names]
            agrees = all(config[option] == names[option] for option in unchosen)
            found.append((len(names), agrees, name not in _OTHER_NETWORKS, -len(name), name))
    return max(found)[-1] if found else ""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that another scheduler's configuration says, the defaults of its class included.

    Added are ``origin``, the class, and ``origin_defaults``: what nobody chose, which diffusers drops when a
    configuration changes class. Betas stay, for the network was trained with them.
    """
    origin, unchosen = origin_of(config), config.get("_use_default_values") or ()
    kind = _kind_named(origin)
    defaults = {name: default for name, default in parameters(kind).items() if name not in config} if kind else {}
    settings = {**defaults, **{name: value for name, value in config.items() if not name.startswith("_")}}
    dropped = sorted(name for name in {*defaults, *unchosen} if name not in _BETAS)
    return {**settings, "origin": origin, "origin_defaults": dropped}


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler of the class ``name`` with the settings of ``settings_of``, as diffusers would convert it.

    Raises:
        UnsupportedError: there is no such class, or it cannot be made from the settings.
    """
    kind = _kind_named(name)
    if kind is None:
        raise UnsupportedError(f"diffusers has no scheduler {name}: choose a grid that needs none, such as tangent")
    options, flow = parameters(kind), is_flow(config)
    has_betas = any(option in options for option in _BETAS[1:])
    if not ("use_flow_sigmas" in options or not has_betas if flow else has_betas):
        network = "flow models" if flow else "networks with betas"
        raise UnsupportedError(f"{name} is not for {network}: choose another preset, or a grid such as tangent")
    dropped = () if name == config.get("origin") else config.get("origin_defaults") or ()
    given = {option: config[option] for option in options if option in config and option not in dropped}
    if flow and "use_flow_sigmas" in options:
        given["use_flow_sigmas"] = True
    try:
        return kind(**given)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise UnsupportedError(f"{name} cannot be made: {_first_line(error)}; choose a grid such as tangent") from error


def parameters(kind: Any) -> dict[str, Any]:
    """The settings of a scheduler class with their defaults."""
    listed = inspect.signature(kind.__init__).parameters.values()
    return {each.name: each.default for each in listed if each.name not in ("self", "args", "kwargs")}


def _kind_named(name: str) -> Any:
    """The scheduler class of diffusers, or of anybody who derives from its mixin."""
    known = (kind for kind in _scheduler_kinds(SchedulerMixin) if kind.__name__ == name)
    return getattr(diffusers, name, None) if name and hasattr(diffusers, name) else next(known, None)


def _scheduler_kinds(kind: Any) -> Iterator[Any]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _scheduler_kinds(derived)


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
        raise InputError(f"{name} cannot take {steps} steps: {_first_line(error)}") from error
    levels = _read(visited, schedule)
    if len(levels) != steps + 1:
        raise InputError(f"{name} visits {len(levels) - 1} levels in {steps} steps: take fewer steps or another grid")
    return levels


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _read(visited: Any, schedule: Schedule) -> list[Level]:
    """The levels of a scheduler after ``set_timesteps``."""
    timesteps, sigmas = [float(k) for k in visited.timesteps], getattr(visited, "sigmas", None)
    if timesteps[0] < timesteps[-1]:
        raise UnsupportedError(f"{type(visited).__name__} goes from data to noise: use a scheduler that generates")
    if sigmas is None or len(sigmas) < len(timesteps):
        return _read_chain(visited, timesteps)
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
