"""``SNRScheduler``: any schedule, grid, rho and solver table as a drop-in scheduler of a diffusers pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.core.config import to_dict
from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules import origins, scheduler_config
from logsnr.schedules.grids import GRIDS, grid_of_noise
from logsnr.schedules.prediction import Kind, check_start
from logsnr.schedules.schedule import Schedule, warn_outside
from logsnr.solvers.exponential import Exponential, check_coarse
from logsnr.solvers.limits import limit_of
from logsnr.solvers.noise import seeds_of, seeds_of_rows, step_noise
from logsnr.solvers.presets import FROM_NOISE, PRESETS
from logsnr.solvers.settings import make_noise, make_solver, merged
from logsnr.solvers.table import ESTIMATES, load_table
from logsnr.solvers.visits import Visit, heun_visits, multistep_visits
from logsnr.solvers.weights import combine


@dataclass
class SNRSchedulerOutput(BaseOutput):
    """``prev_sample`` at the next level and the clean estimate ``pred_original_sample``, shaped like the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class SNRScheduler(SchedulerMixin, ConfigMixin):
    """Any schedule with any grid and rho inside a diffusers pipeline.

    ``pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.3)``. ``grid`` "scheduler" visits levels
    of the scheduler that the configuration came from (``origin``); the others are spaced over the schedule, karras with
    ``grid_exponent``, which is also where the ``rho`` of EDM's schedulers goes. ``preset`` keeps the images of a
    diffusers scheduler; ``table`` is a calibrated solver (a path or its content). ``rho`` is a number, one a step, or a
    name (``sde``); None is that of the preset, else 0. Pipelines that pass no generator get per-sample noise through
    ``set_seeds``; ``noise`` "brownian" gives runs of different numbers of steps increments of one path a seed. Networks
    are told the exact time of a level, or with ``integer_timesteps`` the nearest whole timestep.

    Raises:
        InputError: an unknown grid or preset, or settings that exclude each other.
        UnsupportedError: a configuration that cannot be mapped.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012  # diffusers declares it so
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: str = "linspace",
        steps_offset: int = 1,
        shift: float = 1.0,
        use_flow_sigmas: bool = False,
        clip_sample: bool = False,
        solver_order: int = 2,
        variant: Literal["heun", "midpoint"] = "midpoint",
        rho: float | list[float] | str | None = None,
        corrector: bool = False,
        grid: str = "scheduler",
        grid_exponent: float = 7.0,
        preset: str = "",
        table: dict[str, Any] | str | Path | None = None,
        noise: Literal["independent", "brownian"] = "independent",
        integer_timesteps: bool = False,
        origin: str = "",
        origin_defaults: list[str] | None = None,
    ):
        for given, what, known in (
            (grid, "grid", ("scheduler", *GRIDS)),
            (preset, "preset", ("", *PRESETS)),
            (noise, "noise", ("independent", "brownian")),
        ):
            if given not in known:
                raise InputError(f"there is no {what} {given!r}: use one of {', '.join(filter(None, known))}")
        scheduler_config.from_scheduler_config(self.config)  # refuses now, rather than at the first use
        self._preset = PRESETS.get(preset)
        if rho is None:
            self.register_to_config(rho=self._preset.rho if self._preset else 0.0)
        self.table = load_table(table) if table else None
        self.solver = make_solver(self.config, self.table)
        self._own_grid = self.table is not None or grid != "scheduler"
        self.register_to_config(table=to_dict(self.table) if self.table else None)
        if origins.is_flow(self.config):  # else pipelines of the Flux family would pass sigmas of their own
            self.register_to_config(use_flow_sigmas=self._own_grid or use_flow_sigmas)
        self.order = 2 if self._preset and self._preset.two_calls else 1
        self.num_inference_steps: int | None = None
        self.init_noise_sigma, self.levels, self._stops = 1.0, list[Level](), list[Level]()
        self.timesteps, self.sigmas = torch.arange(num_train_timesteps - 1, -1, -1), torch.empty(0)
        self._seeds: list[int] = []
        self._rest(0)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from any diffusers scheduler's configuration, with settings of this class or of that one.

        ``order`` is ``solver_order``, its name in configurations: there diffusers has another meaning for it.

        Raises:
            InputError: a setting that neither class has, or that contradicts another.
            UnsupportedError: a configuration that cannot be mapped.
        """
        return super().from_config(merged(config or {}, kwargs, cls), return_unused_kwargs)

    @cached_property
    def schedule(self) -> Schedule:
        """The schedule that the network was trained on."""
        return scheduler_config.from_scheduler_config(self.config)

    @cached_property
    def kind(self) -> Kind:
        """What the network predicts."""
        return scheduler_config.kind_of(self.config)

    @cached_property
    def _origin(self) -> Any:
        """The diffusers scheduler whose levels the grid "scheduler" visits."""
        usual = "FlowMatchEulerDiscreteScheduler" if self.kind == "flow" else "DPMSolverMultistepScheduler"
        name = self._preset.origin if self._preset else self.config["origin"] or usual
        return origins.make_scheduler(name, self.config)

    @property
    def step_index(self) -> int | None:
        """The visit that comes next; None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The first visit of an image-to-image run."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later visit, for image-to-image."""
        self._rest(begin_index)
        self._begin = begin_index

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seeds of the samples, one a row: their noise then depends on (seed, step) alone, whatever the batch."""
        self._seeds = list(seeds)

    def grid_of(self, steps: int, *, mu: float | None = None, sigmas: Sequence[float] | None = None) -> list[Level]:
        """The levels of a run with this number of steps.

        Raises:
            InputError: the table is for another number of steps, or explicit sigmas contradict a grid or table.
            UnsupportedError: the scheduler that the configuration came from cannot be made.
        """
        if self._own_grid and sigmas is not None:
            raise InputError("the scheduler has a grid of its own and sigmas were passed too: drop one of them")
        if self.table:
            if steps != self.table.steps:
                raise InputError(f"the solver table has {self.table.steps} steps, not {steps}: calibrate for {steps}")
            return self.table.levels(self.schedule)
        if self._own_grid:
            name = self.config["grid"]
            options = {"grid_exponent": self.config["grid_exponent"]} if name == "karras" else {}
            return GRIDS[name](self.schedule, steps, **options)
        if sigmas is not None and self.kind != "flow":
            return grid_of_noise(self.schedule, [value for value in sigmas if value > 0])
        return scheduler_config.scheduler_grid(self._origin, self.schedule, steps, mu=mu, sigmas=sigmas)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the levels of a run: by number, or explicitly by the network's timesteps or by ``sigmas``.

        Raises:
            InputError: nothing was asked for, or the levels cannot be visited.
        """
        if timesteps is not None:
            if self._own_grid:
                raise InputError("the scheduler has a grid of its own and timesteps were passed too: drop one of them")
            self.levels = scheduler_config.levels_told(self.config, self.schedule, timesteps)
        elif sigmas is not None:
            self.levels = self.grid_of(len(sigmas), mu=mu, sigmas=[float(value) for value in sigmas])
        elif num_inference_steps is not None:
            self.levels = self.grid_of(num_inference_steps, mu=mu)
            if isinstance(self.solver, Exponential) and not self.table:
                rule = scheduler_config.rule_of(self.config)
                check_coarse(self.solver.order, self.solver.linear, rule, num_inference_steps)
        else:
            raise InputError("set_timesteps needs a number of steps, timesteps or sigmas: pass one of them")
        check_start(self.kind, self.levels[0])
        warn_outside(self.schedule, self.levels)
        self.num_inference_steps = len(self.levels) - 1
        self._rest(0)
        self._stops = [visit.level for visit in self._visits]
        self.sigmas = torch.tensor([self._sigma(level) for level in [*self._stops, self.levels[-1]]])
        self.timesteps = self._timesteps().to(device)
        self._marks = self.timesteps.tolist()
        self._draw = make_noise(self.config, self.levels)
        self.init_noise_sigma = self._start_scale()

    def _rest(self, begin: int) -> None:
        """Stand before visit ``begin`` with nothing behind, the numbers of all steps ahead computed."""
        self._visits: list[Visit] = []
        if self.levels and self._preset and self._preset.two_calls:
            self._visits = heun_visits(self.kind, self.levels, self._preset.two_calls, begin)
        elif self.levels:
            self._visits = multistep_visits(self.solver, self.kind, self.levels, begin)
        self._first, self._begin, self._index = begin, None, None
        self._history: tuple[Tensor, ...] = ()
        self._before: Any = None
        self._drawn: Tensor | None = None

    def _timesteps(self) -> Tensor:
        """What the network is told at its visits: integers where all are whole or shall be, else float32."""
        told = [scheduler_config.timestep_of(self.config, level) for level in self._stops]
        times, rounded = torch.tensor(told, dtype=torch.float64), self.config["integer_timesteps"]
        if rounded and origins.is_edm(self.config):
            raise InputError("networks with EDM's preconditioning are told no whole timesteps: drop integer_timesteps")
        whole = bool((times - times.round()).abs().max() < 1e-6)
        return times.round().long() if rounded or whole else times.float()

    def _time(self, timestep: float) -> float:
        return scheduler_config.time_of(self.config, self.schedule, float(timestep))

    def _sigma(self, level: Level) -> float:
        """sigma / alpha, or sigma itself for flow models, where it is t."""
        return level.sigma if self.kind == "flow" else level.sigma / level.alpha if level.alpha else float("inf")

    def _start_scale(self) -> float:
        """The deviation of the start: 1, or that of the noise alone where the scheduler that is kept starts so.

        In the scale of a network with EDM's preconditioning it is that of data of unit deviation, as for diffusers.
        """
        if origins.is_edm(self.config):
            return math.hypot(self.levels[0].alpha, self.levels[0].sigma)
        if self._own_grid or type(self._origin).__name__ not in FROM_NOISE:
            return 1.0
        return 1.0 if self._origin.config["timestep_spacing"] == "leading" else self.levels[0].sigma

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample itself: networks of this family read xt."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SNRSchedulerOutput | tuple[Tensor, Tensor]:
        """From the network's output at the current level to the sample (n, ...) at the next.

        Raises:
            InputError: ``set_timesteps`` was not called, or there is no step left.
        """
        index = self._start(timestep) if self._index is None else self._index
        if index - self._first >= len(self._visits):
            raise InputError("there is no step left: call set_timesteps before sampling")
        visit, self._index = self._visits[index - self._first], index + 1
        x, output = sample.float(), model_output.float()
        if output.shape != x.shape:  # further channels are for a learned variance
            output = output[:, : x.shape[1]]
        of_x, of_output = visit.clean
        x0 = found = (x * of_x).add_(output, alpha=of_output)
        if self._limit is not None:
            x0 = found = self._limit(x0)
        if visit.slope is not None:
            if self._limit is not None:
                output = (x0 - x * of_x) / of_output  # what would have said so
            found = (x * visit.slope[0]).add_(output, alpha=visit.slope[1])
        if visit.repair is not None:
            x = combine(visit.repair, self._before, found, self._history, self._drawn)
        noise = self._noise(index, x, generator) if visit.step.noise else None
        moved = combine(visit.step, x, found, self._history, noise)
        if visit.before:
            moved.add_(self._before, alpha=visit.before)
        self._history, self._before, self._drawn = (found, *self._history[: ESTIMATES - 2]), x, noise
        if sample.dtype is not torch.float32:
            moved, x0 = moved.to(sample.dtype), x0.to(sample.dtype)
        return SNRSchedulerOutput(prev_sample=moved, pred_original_sample=x0) if return_dict else (moved, x0)

    def _start(self, timestep: float | Tensor) -> int:
        """The first visit: the begin index, or the visit of this timestep for pipelines that set none."""
        if self._begin is None and self.levels:
            begin = self._find(float(timestep))
            if begin != self._first:
                self._rest(begin)
        return self._first

    def _find(self, timestep: float) -> int:
        """The visit of a timestep, the second of two for Heun's method; 0 if there is none."""
        found = [index for index, mark in enumerate(self._marks) if mark == timestep]
        return found[self.order - 1 if found[0] else 0] if found else 0

    @cached_property
    def _limit(self) -> Callable[[Tensor], Tensor] | None:
        """What the configuration does to clean estimates."""
        return limit_of(self.config)

    def _noise(self, index: int, sample: Tensor, generator: Any) -> Tensor:
        if not self._seeds and self._draw is step_noise:
            return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        seeds = self._seeds or seeds_of(generator, len(sample))
        return self._draw(seeds_of_rows(seeds, len(sample)), sample.shape[1:], index).to(sample.device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha * x0 + sigma * noise at timesteps (n,) of the network."""
        alpha, sigma = self._coefficients(timesteps, original_samples)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The v target alpha * noise - sigma * sample at timesteps (n,) of the network."""
        alpha, sigma = self._coefficients(timesteps, sample)
        return alpha * noise - sigma * sample

    def _coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Any, Any]:
        """alpha and sigma: of the visit where the run stands or starts if that is meant, else of the schedule."""
        told = timesteps.flatten().tolist()
        if self.levels and len(set(told)) == 1:
            begin = self._find(told[0]) if self._begin is None else self._begin
            index = begin if self._index is None else self._index
            if index < len(self._marks) and self._marks[index] == told[0]:
                return self._stops[index].alpha, self._stops[index].sigma
        t = torch.tensor([self._time(k) for k in told], dtype=torch.float64)
        shape = (-1, *[1] * (like.dim() - 1))
        alpha, sigma = (f(t).to(like).view(shape) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha, sigma

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
