"""``ConsistencyScheduler``: one- and few-step sampling of consistency models as a scheduler of a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from logsnr.consistency.curriculum import sigma_grid
from logsnr.consistency.function import consistency_levels
from logsnr.core.errors import InputError
from logsnr.schedules.boundary import Boundary
from logsnr.solvers.noise import seeds_of_rows, step_noise


@dataclass
class ConsistencySchedulerOutput(BaseOutput):
    """``prev_sample`` with new noise for the next level, and the clean estimate ``pred_original_sample``."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class ConsistencyScheduler(SchedulerMixin, ConfigMixin):
    """From noise to data in one call; each further one adds noise again and takes it away.

    Samples are x0 + s noise, in the units of the latents, which are never clipped. ``prediction_type`` "consistency" is
    a network with EDM's preconditioning that is told 250 ln s; "epsilon", "v_prediction" and "sample" are networks of
    the schedule that the betas say, such as one that was trained on from a diffusion model. "flow_prediction" is one of
    Stable Diffusion 3, whose samples are (x0 + s noise) / (1 + s). ``middle_sigmas`` are the levels s of the second and
    further calls, by how many they are: [[0.4], [0.8, 0.3]] serves two and three calls. ``guidance`` is what a
    network has learned of it: one scale, its own, or the two ends of the range that it is told.

    Raises:
        InputError: noise levels that do not fall, or of another number than their place says.
        UnsupportedError: a configuration that cannot be mapped.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        prediction_type: str = "consistency",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        grid_exponent: float = 7.0,
        num_levels: int = 641,
        middle_sigmas: list[list[float]] | None = None,
        guidance: list[float] | None = None,
    ):
        for calls, middle in enumerate(middle_sigmas or [], 2):
            if len(middle) != calls - 1:
                raise InputError(f"middle_sigmas has {len(middle)} levels where {calls} calls need {calls - 1}")
            _check([sigma_max, *middle], sigma_min, sigma_max)
        self._boundary, self._flow = Boundary(sigma_min, sigma_data), prediction_type == "flow_prediction"
        self.init_noise_sigma, self._seeds = sigma_max, list[int]()
        self.num_inference_steps: int | None = None
        self.set_timesteps(1)

    def grid(self) -> list[float]:
        """The levels of the training's last stage, noisiest first."""
        names = ("sigma_min", "sigma_max", "grid_exponent")
        return sigma_grid(self.config["num_levels"], **{name: self.config[name] for name in names}).tolist()

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Seeds of the samples, one a row: their noise then depends on (seed, step) alone, whatever the batch."""
        self._seeds = list(seeds)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        *,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose the noise levels: by number, by ``sigmas``, or by places of the grid, of which 0 is the noisiest.

        Of a flow ``sigmas`` are shares of noise, as its pipelines give them: 1 is the noisiest level, t is t / (1 - t).

        Raises:
            InputError: nothing was asked for, there are no levels for so many calls, or they do not fall.
        """
        if timesteps is not None:
            grid, places = self.grid(), sorted(int(place) for place in timesteps)
            if not places or places[0] < 0 or places[-1] >= len(grid):
                raise InputError(f"timesteps are places of the grid, 0 to {len(grid) - 1}, and not {list(timesteps)}")
            sigmas = [grid[place] for place in places]
        elif sigmas is not None:
            sigmas = [self._of_share(float(share)) for share in sigmas] if self._flow else sigmas
        elif num_inference_steps is not None:
            sigmas = [self.config["sigma_max"], *self._middle(num_inference_steps)]
        else:
            raise InputError("set_timesteps needs a number of steps, timesteps or sigmas: pass one of them")
        _check(sigmas, self.config["sigma_min"], self.config["sigma_max"])
        self._levels = consistency_levels(self.config, self._boundary, sigmas)
        told = [s / (1 + s) for s in sigmas] if self._flow else [float(s) for s in sigmas]
        self.sigmas, self.num_inference_steps = torch.tensor([*told, 0.0]), len(sigmas)
        self.timesteps = self._levels.timesteps.float().to(device)
        self.init_noise_sigma, self._index, self._begin = told[0], None, None

    def _of_share(self, share: float) -> float:
        """The level s of a share of noise, s / (1 + s), at most the noisiest."""
        most = self.config["sigma_max"]
        return most if share >= most / (1 + most) else share / (1 - share)

    def _middle(self, calls: int) -> list[float]:
        """The levels after the first."""
        known = self.config["middle_sigmas"] or []
        if calls == 1:
            return []
        if 2 <= calls < len(known) + 2:
            return known[calls - 2]
        most = len(known) + 1
        raise InputError(
            f"this model has levels for up to {most} calls, not {calls}: take --steps {most}, or pass sigmas"
        )

    @property
    def step_index(self) -> int | None:
        """The call that comes next; None before the first."""
        return self._index

    @property
    def begin_index(self) -> int | None:
        """The first call of an image-to-image run."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later call, for image-to-image."""
        self._begin, self._index = begin_index, None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The sample in the scale that the network reads."""
        place = self._place(timestep)
        return sample if self._flow else sample * float(self._levels.input_scale[place])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ConsistencySchedulerOutput | tuple[Tensor, Tensor]:
        """From the network's output (n, ...) to clean data, and with noise of the next level, if there is one."""
        index = self._place(timestep)
        x = self._plain(sample.float(), index)
        clean = self._levels.combine(x, model_output.float(), torch.full((len(sample),), index))
        self._index, moved = index + 1, clean
        if index + 1 < len(self._levels):
            size = self._boundary.renoised(float(self._levels.sigmas[index + 1]))
            moved = clean + size * self._noise(index, clean, generator)
            moved = moved * float(self._levels.input_scale[index + 1]) if self._flow else moved
        clean, moved = clean.to(sample.dtype), moved.to(sample.dtype)
        return ConsistencySchedulerOutput(moved, clean) if return_dict else (moved, clean)

    def _plain(self, sample: Tensor, index: int) -> Tensor:
        """A sample as x0 + s noise; pipelines of flows start from noise of deviation 1, whatever the first level is."""
        if not self._flow:
            return sample
        start = index == 0 and self._begin is None
        return sample * float(self._levels.sigmas[0]) if start else sample / float(self._levels.input_scale[index])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean samples (n, ...) at the levels of timesteps (n,), for image-to-image."""
        places = torch.tensor([self._find(float(timestep)) for timestep in timesteps])
        noisy = original_samples + self._levels.sigma(places, original_samples) * noise
        scales = self._levels.input_scale[places].to(noisy).view(-1, *[1] * (noisy.dim() - 1))
        return noisy * scales if self._flow else noisy

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The same, as pipelines of flows call it."""
        return self.add_noise(sample, noise, timestep)

    def _place(self, timestep: float | Tensor) -> int:
        """The call that comes next; at first the begin index, or the one of this timestep."""
        if self._index is None:
            self._index = self._find(float(timestep)) if self._begin is None else self._begin
        if self._index >= len(self._levels):
            raise InputError("there is no step left: call set_timesteps before sampling")
        return self._index

    def _find(self, timestep: float) -> int:
        return int((self.timesteps.cpu() - timestep).abs().argmin())

    def _noise(self, index: int, like: Tensor, generator: Any) -> Tensor:
        if not self._seeds:
            return randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)
        return step_noise(seeds_of_rows(self._seeds, len(like)), like.shape[1:], index).to(like)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]


def _check(sigmas: Sequence[float], least: float, most: float) -> None:
    falling = all(before > after for before, after in pairwise(sigmas))
    if not sigmas or not falling or sigmas[-1] < least or sigmas[0] > most * (1 + 1e-6):
        shown = [float(f"{s:.4g}") for s in sigmas]
        raise InputError(f"the noise levels {shown} must fall, and stay between {least:.3g} and {most:.3g}")
