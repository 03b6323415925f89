"""Where a diffusers scheduler configuration comes from: its class, that class's settings, and the way back to it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from logsnr.core.errors import UnsupportedError

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
_TOKENS, _FEW_STEPS = "its network predicts tokens", "its network is a consistency model, which jumps to clean data"
_STAGES = "it works in stages of several resolutions"
NOT_MAPPED: Mapping[str, str] = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "CMStochasticIterativeScheduler": _FEW_STEPS,
    "CosineDPMSolverMultistepScheduler": "its network is told an angle in place of a timestep",
    "DDPMWuerstchenScheduler": "its network is told the time itself in place of a timestep",
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "FlowMapEulerDiscreteScheduler": "its network maps between two times",
    "HeliosDMDScheduler": _STAGES,
    "HeliosScheduler": _STAGES,
    "IPNDMScheduler": "its network is told an angle in place of a timestep",
    "KarrasVeScheduler": "its pipeline scales what the network reads and says by rules of its own",
    "MiniMaxH3Scheduler": "its network points to the data and counts time from the noise",
    "PiflowScheduler": "its network makes several predictions at once",
    "RFD4ProteinaScheduler": "it steps two coupled kinds of data",
    "SCMScheduler": _FEW_STEPS,
    "ScoreSdeVeScheduler": "its network says a score and is told a sigma",
    "VQDiffusionScheduler": _TOKENS,
}
"""Schedulers of diffusers whose networks are no eps, x0, v, flow or F network of a schedule, and why."""


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether the configuration belongs to a flow model: flow-match schedulers have no betas."""
    plain = "shift" in config or ("eta" in config and "s_noise" in config)
    return config.get("prediction_type") == "flow_prediction" or ("beta_start" not in config and plain)


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether the configuration belongs to a network with EDM's preconditioning (2206.00364)."""
    return ("sigma_schedule" in config and "sigma_data" in config) or is_consistency(config)


def is_few_step(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is that of a ``ConsistencyScheduler``, of whatever network."""
    return "middle_sigmas" in config


def refuse_few_step(config: Mapping[str, Any], advice: str) -> None:
    """Refuse what needs the denoiser of a diffusion, and say what to do.

    Raises:
        UnsupportedError: the configuration is that of a consistency model.
    """
    if is_few_step(config):
        raise UnsupportedError(f"a consistency model jumps to clean data: {advice}")


def is_consistency(config: Mapping[str, Any]) -> bool:
    """Whether it is a consistency model of the original form, which is told 1000 times as much (2303.01469)."""
    return config.get("prediction_type") == "consistency"


def edm_exponent(config: Mapping[str, Any]) -> float:
    """The exponent of an EDM network's grid: the rho of its own schedulers, elsewhere kept as grid_exponent."""
    kind = _kind_named(origin_of(config))
    own = kind is not None and _has_edm_rho(kind)
    return float(config.get("rho" if own else "grid_exponent", 7.0))


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
            found.append((len(names), agrees, name not in NOT_MAPPED, -len(name), name))
    return max(found)[-1] if found else ""


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that another scheduler's configuration says, the defaults of its class included.

    Added are ``origin``, the class, and ``origin_defaults``: what nobody chose, which diffusers drops when a
    configuration changes class. Betas stay, for the network was trained with them. EDM's ``rho`` is ``grid_exponent``
    here, where rho is a noise multiplier.
    """
    origin, unchosen = origin_of(config), config.get("_use_default_values") or ()
    kind = _kind_named(origin)
    defaults = {name: default for name, default in parameters(kind).items() if name not in config} if kind else {}
    settings = {**defaults, **{name: value for name, value in config.items() if not name.startswith("_")}}
    if kind and _has_edm_rho(kind):
        settings["grid_exponent"] = settings.pop("rho")
    dropped = sorted(name for name in {*defaults, *unchosen} if name not in BETAS)
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
    _check_network(name, options, config)
    dropped = () if name == config.get("origin") else config.get("origin_defaults") or ()
    given = {option: config[option] for option in options if option in config and option not in dropped}
    if is_edm(config):
        given["rho"] = config.get("grid_exponent", options["rho"])
    if flow and "use_flow_sigmas" in options:
        given["use_flow_sigmas"] = True
    try:
        return kind(**given)
    except (ImportError, ValueError, NotImplementedError) as error:
        raise UnsupportedError(f"{name} cannot be made: {first_line(error)}; choose a grid such as tangent") from error


def _check_network(name: str, options: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse a scheduler class that steps another kind of network than the configuration's."""
    has_betas = any(option in options for option in BETAS[1:])
    if is_edm(config):
        network, fits = "networks with EDM's preconditioning", is_edm(options)
    elif is_flow(config):
        network, fits = "flow models", "use_flow_sigmas" in options or not has_betas
    else:
        network, fits = "networks with betas", has_betas
    if not fits:
        raise UnsupportedError(f"{name} is not for {network}: choose another preset, or a grid such as tangent")


def _has_edm_rho(kind: Any) -> bool:
    """Whether a scheduler class calls the exponent of EDM's grid rho."""
    found = parameters(kind)
    return "rho" in found and is_edm(found)


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


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
