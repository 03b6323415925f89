"""Latent consistency training (Dao et al. 2025, 2502.01441): neighbouring noise levels agree on the clean sample.

    loss = E[penalty(f(x0 + s n, s) - sg f(x0 + r n, r)) / (s - r)] + w E_low[(1/s^2 + 1/d^2) |f(x0 + s n, s) - x0|^2]

s and r are neighbours on a grid whose levels double in number from stage to stage. Target and student are the same
weights, noise and dropout. Deviations: the scale c of the penalty may be measured at the start of a stage, on errors as
they are then; a diffusion model can be the start, as in 2406.14548, whatever it predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.coupling import couple
from logsnr.consistency.curriculum import (
    Curriculum,
    averaging_decay,
    fitted_scale,
    level_chances,
    pair_weights,
    sigma_grid,
)
from logsnr.consistency.function import Levels, consistency_levels
from logsnr.consistency.losses import denoising_loss, penalise, small_sigma_mask
from logsnr.core.artifact import save_tensors
from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.models.denoiser import Tree
from logsnr.models.ema import Average, averaged
from logsnr.schedules.boundary import Boundary
from logsnr.train.method import Batch, Dataset, Group, Loss, load_module_state, module_state

Condition = Callable[[Batch], Tree]
_MEASURED, _DRAWN = 64, 32
"""Batches, and rows of each, by which the scale of a stage is measured."""


class ConsistencyMethod:
    """Train ``network(x, timesteps, **cond)`` -> output; ``condition`` gives the conditioning of a batch's rows.

    ``data`` has ``latent`` (n, ...) of deviation ``sigma_data`` and, for label-aware coupling, ``label``. ``module``
    holds the weights, and ``levels`` is a diffusers scheduler's configuration, which says how the network reads noise.

    Raises:
        InputError: latents are not finite or constant in a channel, or the curriculum does not fit the run.
    """

    def __init__(
        self,
        module: nn.Module,
        network: Callable[..., Tensor],
        levels: Mapping[str, Any],
        data: Dataset,
        config: ConsistencyConfig,
        *,
        condition: Condition | None = None,
        show: Callable[[nn.Module], Tensor] | None = None,
    ):
        self.module, self.network, self.levels, self.data = module, network, levels, data
        self.config, self.condition, self.show = config, condition, show
        self.curriculum = Curriculum(config.run.steps, config.start_levels, config.end_levels)
        check_latents(data)
        decays = config.averages or (averaging_decay(config.run.steps),)
        self.averages: dict[float, Average[nn.Module]] = {decay: averaged(module, decay) for decay in decays}
        self.scales: dict[int, float] = {}
        self._stages: dict[int, _Stage] = {}

    def loss(self, batch: Batch, step: int) -> Loss:
        stage = self.stage(self.curriculum.num_levels(step))
        x0, noise = batch["latent"], batch.normal(*batch["latent"].shape[1:])
        if self.config.coupling != "off":
            labels = batch["label"] if self.config.coupling == "labels" else None
            noise = noise[couple(x0, noise, labels)]
        places = stage.draw(batch.uniform())
        cond = self.condition(batch) if self.condition else None
        denoised, target = self._pair(stage, x0, noise, places, cond)
        c = self.scale(stage.num_levels, denoised)
        options = {"reduction": self.config.reduction, "normalisation": self.config.normalisation}
        errors = penalise(denoised - target, c, self.config.penalty, **options)
        consistency = (stage.weights.to(errors)[places] * errors).mean()
        sigma = stage.levels.sigmas.to(errors)[places]
        mask = small_sigma_mask(places, stage.num_levels, self.config.denoising_rate)
        denoising = denoising_loss(denoised, x0, sigma, mask, sigma_data=self.config.sigma_data)
        error = (denoised.detach() - target).square().mean().sqrt()
        logs = {"consistency": consistency.detach(), "denoising": denoising.detach(), "scale_share": c / error}
        return Loss(consistency + self.config.denoising_weight * denoising, logs)

    def _pair(
        self, stage: _Stage, x0: Tensor, noise: Tensor, places: Tensor, cond: Tree | None
    ) -> tuple[Tensor, Tensor]:
        """The student's clean samples at the noisier levels, and the target's at their neighbours: one dropout mask."""
        devices = [x0.device] if x0.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            cleaner = x0 + stage.levels.sigma(places + 1, x0) * noise
            target = stage.levels(self.network, cleaner, places + 1, cond)
        noisier = x0 + stage.levels.sigma(places, x0) * noise
        return stage.levels(self.network, noisier, places, cond), target

    def stage(self, num_levels: int) -> _Stage:
        """The grid of a stage."""
        if num_levels not in self._stages:
            self._stages = {num_levels: _Stage(num_levels, self.levels, self.config)}
        return self._stages[num_levels]

    def scale(self, num_levels: int, like: Tensor) -> float:
        """The penalty's scale c of a stage; measured when the stage begins, and kept."""
        found, root = self.config.scale_value, float(like[0].numel()) ** 0.5
        if self.config.scale == "fit":
            found *= fitted_scale(num_levels) * 2 * self.config.sigma_data
        elif self.config.scale == "online":
            if num_levels not in self.scales:
                self.scales[num_levels] = max(self._measured(num_levels), 1e-6)
            found *= self.scales[num_levels]
        return found * root if self.config.reduction == "sum" and self.config.scale != "constant" else found

    @torch.no_grad()
    def _measured(self, num_levels: int) -> float:
        """The median root mean squared error of pairs as they are now."""
        stage, draws, found = self.stage(num_levels), generator(self.config.run.seed, "scale", num_levels), []
        training = self.module.training
        self.module.eval()
        for turn in range(_MEASURED):
            rows = torch.randint(len(self.data), (_DRAWN,), generator=draws)
            device = next(self.module.parameters()).device
            data = {name: value.to(device) for name, value in self.data.take(rows).items()}
            batch = Batch(data, slice(0, _DRAWN), _DRAWN, (self.config.run.seed, -1 - turn), device)
            x0, noise = batch["latent"], batch.normal(*batch["latent"].shape[1:])
            cond = self.condition(batch) if self.condition else None
            denoised, target = self._pair(stage, x0, noise, stage.draw(batch.uniform()), cond)
            found.append((denoised - target).square().flatten(1).mean(1).sqrt())
        self.module.train(training)
        return float(torch.cat(found).median())

    # What ``fit`` asks of a method

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.module, **{f"average_{decay}": each for decay, each in self.averages.items()}}

    def parameter_groups(self) -> list[Group]:
        return [Group([p for p in self.module.parameters() if p.requires_grad], self.config.learning_rate)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups)

    def after_step(self, step: int) -> None:
        for average in self.averages.values():
            average.update_parameters(self.module)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        stages = [self.config.start_levels, self.config.end_levels, self.config.run.steps]
        scales = {str(num_levels): value for num_levels, value in self.scales.items()}
        return module_state(**self.modules()), {"scales": scales, "stages": stages}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        if values["stages"] != self.state()[1]["stages"]:
            raise InputError("the unfinished run has other stages: give the same ones, or choose another --out")
        load_module_state(tensors, **self.modules())
        self.scales = {int(num_levels): value for num_levels, value in values["scales"].items()}

    def preview(self) -> Tensor | None:
        return self.show(next(iter(self.averages.values())).network) if self.show else None

    def export(self, folder: Path) -> None:
        for decay, average in self.averages.items():
            save_tensors(folder / f"average-{decay}.safetensors", average.network.state_dict())


class _Stage:
    """The grid of one number of levels: its table, how often each pair is drawn, and how much it weighs."""

    def __init__(self, num_levels: int, told: Mapping[str, Any], config: ConsistencyConfig):
        ends = {"sigma_min": config.sigma_min, "sigma_max": config.sigma_max, "grid_exponent": config.grid_exponent}
        sigmas, self.num_levels = sigma_grid(num_levels, **ends), num_levels
        boundary = Boundary(config.sigma_min, config.sigma_data)
        self.levels: Levels = consistency_levels(told, boundary, sigmas.tolist())
        self.weights = pair_weights(sigmas)
        self.chances = level_chances(sigmas, mean=config.level_mean, std=config.level_std).cumsum(0)

    def draw(self, uniform: Tensor) -> Tensor:
        """Places of the noisier level of pairs (n,), from uniform draws (n,)."""
        chances = self.chances.to(uniform.device)
        return torch.searchsorted(chances, uniform.double()).clamp(max=len(chances) - 1)


def check_latents(data: Dataset, num: int = 2048) -> None:
    """Refuse latents that cannot be learned.

    Raises:
        InputError: a latent of the first is not finite, or a channel is the same in all of them.
    """
    latents = data.take(torch.arange(min(num, len(data))))["latent"]
    if not latents.isfinite().all():
        raise InputError("there are latents that are not finite: encode the data anew")
    if latents.dim() > 2 and (flat := latents.transpose(0, 1).flatten(1).std(1) == 0).any():
        raise InputError(f"channel {int(flat.nonzero()[0])} of the latents is constant: leave it out")
