"""The settings of ``SNRScheduler``: taken over from another scheduler, checked, and made a solver and its noise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import diffusers

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.origins import is_edm, is_flow, origin_of, parameters, refuse_few_step, settings_of
from logsnr.schedules.scheduler_config import from_scheduler_config
from logsnr.solvers.backward import is_noisy
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import BrownianNoise, StepNoise, step_noise
from logsnr.solvers.presets import PRESETS
from logsnr.solvers.table import SolverTable, Tabulated

_SOLVER = ("variant", "rho", "corrector", "grid", "preset", "table", "noise", "integer_timesteps")


def merged(config: Mapping[str, Any], given: Mapping[str, Any], own: type) -> dict[str, Any]:
    """A configuration for the scheduler class ``own``: of any diffusers scheduler, changed as ``given``.

    Raises:
        InputError: a setting that neither class has, or that contradicts another.
        UnsupportedError: a configuration that cannot be mapped.
    """
    config, given = dict(config), dict(given)
    refuse_few_step(config, "keep its ConsistencyScheduler")
    if "order" in given:
        if "solver_order" in given:
            raise InputError("order and solver_order are one setting under two names: give one of them")
        given["solver_order"] = given.pop("order")
    if origin_of(config) not in ("", own.__name__):
        config = settings_of(config)
        from_scheduler_config(config)
        earlier = _SOLVER if is_edm(config) else (*_SOLVER, "grid_exponent")  # of an earlier conversion
        config = {name: value for name, value in config.items() if name not in earlier}
    if config.get("origin"):  # whose settings diffusers then keeps without a word
        config["_class_name"] = config["origin"]
    preset, known = PRESETS.get(given.get("preset", "")), {*config, *parameters(own)}
    if preset:
        known |= set(parameters(getattr(diffusers, preset.origin)))
    if unknown := sorted(set(given) - known):
        raise InputError(f"neither {own.__name__} nor the scheduler before it has a setting {unknown[0]!r}: drop it")
    _check_alone({**config, **given}, given)
    if preset:
        given.setdefault("rho", preset.rho)
    config["origin_defaults"] = [name for name in config.get("origin_defaults") or () if name not in given]
    if is_flow(config):
        config["prediction_type"] = "flow_prediction"
    return {**config, **given}


def _check_alone(config: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse settings that are given beside a preset or a table, which would not be followed."""
    preset, table = config.get("preset"), config.get("table")
    brought = (["solver_order", "variant"] if preset or table else []) + (["grid"] if table else [])
    if beside := " and ".join(name for name in brought if name in given):
        what = f"preset {preset!r}" if preset else "a solver table"
        raise InputError(f"{what} has its own {beside}: drop {beside}, or what brings it")


def make_solver(config: Mapping[str, Any], table: SolverTable | None) -> Exponential | Tabulated:
    """The solver that the settings name, which must not contradict each other.

    Raises:
        InputError: they do, or rho is a function.
    """
    preset, rho, corrector = PRESETS.get(config["preset"]), config["rho"], config["corrector"]
    if callable(rho):
        raise InputError("rho cannot be a function in a configuration: give a number, one a step, or a preset")
    noiseless = table or (preset and preset.two_calls)
    if (noiseless and is_noisy(rho)) or ((preset or table) and corrector) or (preset and table):
        name = f"preset {config['preset']!r}" if preset else "a solver table"
        raise InputError(f"{name} is a solver of its own: drop the rho, corrector or table beside it")
    if config["origin_defaults"] is None:  # made without from_config, which has looked at what it was given
        _check_alone(config, set(config) - set(config.get("_use_default_values", ())))
    if table:
        return table.solver()
    if preset:
        return Exponential(preset.order, rho, preset.variant)
    return Exponential(config["solver_order"], rho, config["variant"], corrector)


def make_noise(config: Mapping[str, Any], levels: Sequence[Level]) -> StepNoise:
    """How the steps of a run over these levels draw the noise of seeds."""
    brownian = config["noise"] == "brownian" and is_noisy(config["rho"])
    return BrownianNoise(config["rho"], levels) if brownian else step_noise
