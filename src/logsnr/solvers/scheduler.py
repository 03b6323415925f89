"""``SNRScheduler``: the exponential solver as a drop-in scheduler of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.core.errors import InputError
from logsnr.core.types import Level
from logsnr.schedules.families import from_scheduler_config
from logsnr.schedules.grids import GRIDS, check_grid, scheduler_grid
from logsnr.schedules.prediction import check_start, kind_of, predict
from logsnr.schedules.schedule import is_flow
from logsnr.solvers.exponential import Exponential, Memory
from logsnr.solvers.noise import step_noise


@dataclass
class SNRSchedulerOutput(BaseOutput):
    """``prev_sample`` at the next level and the clean estimate ``pred_original_sample``, shaped like the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class SNRScheduler(SchedulerMixin, ConfigMixin):
    """Any schedule with any grid and rho inside a diffusers pipeline.

    ``pipe.scheduler = SNRScheduler.from_config(pipe.scheduler.config, rho=0.3)``. ``grid`` "scheduler" visits the
    timesteps of the configuration that it came from; "time", "log-snr" and "karras" are float timesteps from the
    schedule. ``variant`` "midpoint" with that grid reproduces DPM-Solver++ 2M. Pipelines that pass no generator get
    per-sample noise through ``set_seeds``.
    """

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
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        clip_sample: bool = False,
        solver_order: int = 2,
        variant: str = "midpoint",
        rho: float = 0.0,
        grid: str = "scheduler",
    ):
        if grid != "scheduler" and grid not in GRIDS:
            raise InputError(f"there is no grid {grid!r}: use scheduler, {', '.join(GRIDS)}")
        self.schedule, self.kind = from_scheduler_config(self.config), kind_of(self.config)
        self.solver = Exponential(solver_order, rho, variant)  # type: ignore[arg-type]
        self.init_noise_sigma = 1.0
        self._begin: int | None = None
        self._index: int | None = None
        self._memory: Memory | None = None
        self._seeds: list[int] = []
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self.levels: list[Level] = []

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from any diffusers scheduler's configuration; flow-match ones become flow prediction."""
        if isinstance(config, Mapping) and is_flow(config):
            config = {**config, "prediction_type": "flow_prediction"}
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def sigmas(self) -> Tensor:
        """sigma / alpha of every level, or sigma itself for flow models (where it is t): (steps + 1,)."""
        flow = self.kind == "flow"
        return torch.tensor([at.sigma if flow else at.sigma / at.alpha for at in self.levels])

    @property
    def step_index(self) -> int | None:
        """The step that comes next, or None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """Where sampling starts; image-to-image pipelines set it."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step instead of the first."""
        self._begin = begin_index

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seeds of the samples, one a row: their noise then depends on (seed, step) alone, whatever the batch."""
        self._seeds = list(seeds)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the grid and compute all weights of its steps in float64."""
        name = self.config["grid"]
        grid = (
            scheduler_grid(self.schedule, self.config, num_inference_steps)
            if name == "scheduler"
            else GRIDS[name](self.schedule, num_inference_steps)
        )
        self.levels = check_grid(grid)
        check_start(self.kind, self.levels[0])
        self.num_inference_steps = num_inference_steps
        times = torch.tensor([self._timestep(level) for level in self.levels[:-1]], dtype=torch.float64)
        whole = times.round()
        self.timesteps = (whole.long() if bool((times - whole).abs().max() < 1e-6) else times.float()).to(device)
        self._index, self._memory = None, None

    def _timestep(self, level: Level) -> float:
        total = self.config["num_train_timesteps"]
        return level.t * total if self.kind == "flow" else max(0.0, level.t * total - 1)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
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
        index = (self._begin or 0) if self._index is None else self._index
        if index + 1 >= len(self.levels):
            raise InputError("there is no step left: call set_timesteps before sampling")
        here, there = self.levels[index], self.levels[index + 1]
        x0 = predict(self.kind, sample.float(), model_output.float(), here).x0
        noise = self._noise(index, sample, generator) if self.solver.rho and there.sigma else None
        moved = self.solver.advance(sample.float(), x0, here, there, noise, self._memory)
        self._memory, self._index = (here, x0), index + 1
        moved, x0 = moved.to(sample.dtype), x0.to(sample.dtype)
        return SNRSchedulerOutput(prev_sample=moved, pred_original_sample=x0) if return_dict else (moved, x0)

    def _noise(self, index: int, sample: Tensor, generator: Any) -> Tensor:
        if not self._seeds:
            return randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        if len(sample) % len(self._seeds):
            raise InputError(f"{len(self._seeds)} seeds do not fit a batch of {len(sample)}: set one seed a sample")
        repeats = len(sample) // len(self._seeds)
        return step_noise(self._seeds * repeats, sample.shape[1:], index).to(sample.device)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha * x0 + sigma * noise at timesteps (n,) of the network."""
        total = self.config["num_train_timesteps"]
        t = (timesteps.double().cpu() + (0 if self.kind == "flow" else 1)) / total
        shape = (-1, *[1] * (original_samples.dim() - 1))
        alpha, sigma = (f(t).to(original_samples).view(shape) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow pipelines call."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])
