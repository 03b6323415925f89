"""Latent consistency training (Dao et al. 2025, 2502.01441): neighbouring noise levels agree on the clean sample.

    loss = E[penalty(f(x0 + s n, s) - sg f(x0 + r n, r)) / (s - r)] + w E_low[(1/s^2 + 1/d^2) |f(x0 + s n, s) - x0|^2]

s and r are neighbours on a grid whose levels double in number from stage to stage. Target and student have the same
noise and dropout, and the same weights, unless the target is their average, as it first was (2303.01469). The first
term is computed as for data of deviation 1/2, whatever d is. Deviations: the scale c of the penalty may be measured at
the start of a stage; the second term's mean is over the expected number of rows, so that a step does not depend on how
it is cut; a diffusion model can be the start, whatever it predicts; a judge may look at the decoded images of some
pairs, as 2303.01469 does with LPIPS.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.consistency.config import ConsistencyConfig
from logsnr.consistency.coupling import correlation, couple
from logsnr.consistency.curriculum import Curriculum, averaging_decay, fitted_scale, target_decay
from logsnr.consistency.losses import denoising_loss, penalise
from logsnr.consistency.pairs import Pairs, Stage, make_stage
from logsnr.consistency.teacher import Step, Teacher
from logsnr.core.artifact import save_tensors
from logsnr.core.config import to_dict
from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.metrics.judge import perceptual_errors
from logsnr.models.denoiser import Tree
from logsnr.models.ema import Average, averaged, follow, standing_in
from logsnr.train.method import Batch, Dataset, Group, Loss, load_module_state, module_state
from logsnr.train.muon import Muon, split_matrices

Condition = Callable[[Batch], Tree]
Perceive = Callable[[Tensor], list[Tensor]]
"""What is seen in clean samples (n, ...): maps, with gradients."""
_MEASURED, _DRAWN = 64, 32
"""Batches, and rows of each, by which the scale of a stage is measured."""


class ConsistencyMethod:
    """Train ``network(x, timesteps, **cond)`` -> output; ``condition`` gives the conditioning of a batch's rows.

    ``data`` has ``latent`` (n, ...) of deviation ``sigma_data`` and, for label-aware coupling, ``label``. ``module``
    holds the weights, and ``levels`` is a diffusers scheduler's configuration, which says how the network reads noise.
    With a ``teacher`` the cleaner samples of pairs are its. ``perceive`` is for the perceptual penalty.

    Raises:
        InputError: latents are not finite or constant in a channel, the curriculum does not fit the run, or nothing
            perceives where that has a weight.
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
        teacher: Teacher | None = None,
        perceive: Perceive | None = None,
        show: Callable[[nn.Module], Tensor] | None = None,
    ):
        self.module, self.network, self.levels, self.data = module, network, levels, data
        self.config, self.condition, self.teacher, self.show = config, condition, teacher, show
        self.perceive = perceive
        if config.perceptual_weight and not perceive:
            raise InputError(
                "nothing perceives here: set perceptual_weight to 0, or train on a world, which has a judge"
            )
        self.curriculum = curriculum_of(config)
        check_latents(data)
        decays = config.averages or (averaging_decay(config.run.steps),)
        self.averages: dict[float, Average[nn.Module]] = {decay: averaged(module, decay) for decay in decays}
        self.scales: dict[int, float] = {}
        self.target = copy.deepcopy(module).requires_grad_(False) if config.target_average else None
        self.skipped = 0
        self._stages: dict[int, Stage] = {}

    def loss(self, batch: Batch, step: int) -> Loss:
        """Both terms; a step whose loss is not finite is skipped and counted, for it would leave no weights."""
        number = self.number(step)
        stage = self.stage(number)
        x0, noise = self._coupled(batch)
        pairs = stage.draw(batch.uniform())
        denoised, target = self.pair(pairs, x0, noise, *self.asked(batch))
        difference, unit = denoised - target, 2 * self.config.sigma_data
        c = self.scale(number, x0)
        options = {"reduction": self.config.reduction, "normalisation": self.config.normalisation}
        errors = penalise(difference / unit, c, self.config.penalty, **options)
        consistency, data = (pairs.weights.to(errors) * errors).mean(), self.config.sigma_data
        sigma = pairs.sigma().to(errors)
        denoising = denoising_loss(denoised, x0, sigma, pairs.low, sigma_data=data, share=stage.low)
        value = consistency + self.config.denoising_weight * denoising
        seen = self._seen(pairs, denoised, target)
        value = value + self.config.perceptual_weight * seen
        if not value.isfinite():
            self.skipped += 1
            value = torch.zeros_like(value, requires_grad=True)
        size = self._root(x0) if self.config.reduction == "sum" else 1.0
        share = c * unit / (difference.detach().square().mean().sqrt() * size)
        logs = {"consistency": consistency.detach(), "denoising": denoising.detach(), "scale_share": share}
        logs |= {"perceptual": seen.detach()} if self.perceive else {}
        logs |= self._pulls(denoised, consistency=consistency, denoising=denoising)
        if self.config.coupling != "off":
            logs["correlation"] = value.new_tensor(correlation(x0, noise))
        return Loss(value, {**logs, "skipped": value.new_tensor(float(self.skipped))})

    def _seen(self, pairs: Pairs, denoised: Tensor, target: Tensor) -> Tensor:
        """The Cauchy penalty of what is seen to differ, whose scale is their median, over all rows; of some it is 0."""
        if not (self.perceive and self.config.perceptual_weight):
            return denoised.new_zeros(())
        rows = pairs.sigma().argsort(descending=True)[: 2 * self.config.perceptual_rows : 2]
        with torch.no_grad():
            wanted = self.perceive(target[rows])
        errors = perceptual_errors(self.perceive(denoised[rows]), wanted)
        penalties = torch.log1p(errors / (2 * errors.detach().median().clamp(min=1e-10)))
        return (pairs.weights.to(errors)[rows] * penalties).sum() / len(denoised)

    def _pulls(self, denoised: Tensor, **terms: Tensor) -> dict[str, Tensor]:
        """The norm of each term's gradient by the student's clean samples, as it is weighed: which of them rules."""
        weights = {"consistency": 1.0, "denoising": self.config.denoising_weight}
        pulls = {name: torch.autograd.grad(value, denoised, retain_graph=True)[0] for name, value in terms.items()}
        return {f"{name}_gradient": weights[name] * pull.norm() for name, pull in pulls.items()}

    def _coupled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Data, and noise of the batch in an order that lies close to it."""
        x0, noise = batch["latent"], batch.normal(*batch["latent"].shape[1:])
        if self.config.coupling == "off":
            return x0, noise
        return x0, noise[couple(x0, noise, batch["label"] if self.config.coupling == "labels" else None)]

    def asked(self, batch: Batch) -> tuple[Tree | None, Step | None]:
        """What the network is told of a batch's rows, and what makes their cleaner samples if the data does not."""
        cond = self.condition(batch) if self.condition else None
        return self.teacher.ask(batch, cond or {}) if self.teacher else (cond, None)

    def pair(
        self, pairs: Pairs, x0: Tensor, noise: Tensor, cond: Tree | None, step: Step | None = None
    ) -> tuple[Tensor, Tensor]:
        """The student's clean samples at the noisier levels, and the target's at those below: one dropout mask."""
        levels, devices = pairs.levels, [x0.device] if x0.is_cuda else []
        noisier = x0 + levels.sigma(pairs.student, x0) * noise
        cleaner = step(noisier, pairs) if step else x0 + levels.sigma(pairs.target, x0) * noise
        with torch.random.fork_rng(devices=devices), torch.no_grad(), standing_in(self.module, self.target):
            target = levels(self.network, cleaner, pairs.target, cond)
            if pairs.clean is not None:
                target = torch.where(pairs.clean.view(-1, *[1] * (x0.dim() - 1)), x0, target)
        return levels(self.network, noisier, pairs.student, cond), target

    def number(self, step: int) -> int:
        """What names the stage of a step: how many levels its grid has, or its place where levels are continuous."""
        return self.curriculum.num_levels(step) if self.config.levels == "grid" else self.curriculum.stage(step)

    def stage(self, number: int) -> Stage:
        """The pairs of a stage, by what names it."""
        if number not in self._stages:
            self._stages = {number: make_stage(number, self.levels, self.config)}
        return self._stages[number]

    def scale(self, number: int, like: Tensor) -> float:
        """The penalty's scale c of a stage, for data of deviation 1/2; measured when the stage begins, and kept."""
        found, kind = self.config.scale_value, self.config.scale
        if kind == "constant":
            return found
        if kind == "fit":
            found *= fitted_scale(number)
        elif kind == "online":
            if number not in self.scales:
                self.scales[number] = calibrated(self.measured(number)[0])
            found *= self.scales[number]
        if kind == "root-size" or self.config.reduction == "sum":
            found *= self._root(like)
        return found

    def _root(self, like: Tensor) -> float:
        return float(like[0].numel()) ** 0.5

    @torch.no_grad()
    def measured(self, number: int) -> tuple[Tensor, Tensor]:
        """Root mean squared errors (n,) of pairs as they are now, for data of deviation 1/2, and their weights (n,)."""
        stage, draws = self.stage(number), generator(self.config.run.seed, "scale", number)
        training, found = self.module.training, []
        self.module.eval()
        for turn in range(_MEASURED):
            batch = self.drawn(torch.randint(len(self.data), (_DRAWN,), generator=draws), turn)
            x0, noise = self._coupled(batch)
            asked, pairs = self.asked(batch), stage.draw(batch.uniform())
            denoised, target = self.pair(pairs, x0, noise, *asked)
            roots = (denoised - target).square().flatten(1).mean(1).sqrt() / (2 * self.config.sigma_data)
            found.append(torch.stack([roots, pairs.weights.to(roots)]).cpu())
        self.module.train(training)
        roots, weights = torch.cat(found, 1)
        return roots, weights

    def drawn(self, rows: Tensor, turn: int) -> Batch:
        """These rows (n,) of the data outside training, with draws that no step has."""
        device = next(self.module.parameters()).device
        data = {name: value.to(device) for name, value in self.data.take(rows).items()}
        return Batch(data, slice(0, len(rows)), len(rows), (self.config.run.seed, -1 - turn), device)

    # What ``fit`` asks of a method

    def modules(self) -> dict[str, nn.Module]:
        kept = {"target": self.target} if self.target else {}
        return {"network": self.module, **kept, **{f"average_{decay}": each for decay, each in self.averages.items()}}

    def parameter_groups(self) -> list[Group]:
        trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        parts = split_matrices(trained) if self.config.optimizer == "muon" else (list(trained.values()),)
        return [Group(part, self.config.learning_rate, self.config.weight_decay) for part in parts]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if self.config.optimizer == "radam":
            return torch.optim.RAdam(groups, eps=self.config.epsilon)
        matrices, others = groups
        return Muon([{**matrices, "orthogonal": True}, others])

    def after_step(self, step: int) -> None:
        for average in self.averages.values():
            average.update_parameters(self.module)
        if self.target:
            decay = target_decay(self.config.target_average, self.config.start_levels, self.number(step))
            follow(self.target, self.module, decay)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        scales = {str(num_levels): value for num_levels, value in self.scales.items()}
        values = {"scales": scales, "skipped": self.skipped, "settings": self._settings()}
        return module_state(**self.modules()), values

    def _settings(self) -> dict[str, Any]:
        """All that a run's results depend on."""
        found, told = to_dict(self.config), {k: v for k, v in self.levels.items() if not k.startswith("_")}
        run = {name: found["run"][name] for name in ("steps", "batch_size", "seed", "warmup", "decay", "clip")}
        base = {"teacher": self.teacher.base} if self.teacher else {}
        return json.loads(json.dumps({**found, "run": run, "scheduler": told, **base}))

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        before = {**json.loads(json.dumps(to_dict(ConsistencyConfig()))), **values["settings"]}
        if before != self._settings():
            raise InputError("the unfinished run has other settings: give the same ones, or choose another --out")
        load_module_state(tensors, **self.modules())
        self.scales = {int(num_levels): value for num_levels, value in values["scales"].items()}
        self.skipped = values["skipped"]

    def preview(self) -> Tensor | None:
        return self.show(next(iter(self.averages.values())).network) if self.show else None

    def export(self, folder: Path) -> None:
        for decay, average in self.averages.items():
            save_tensors(folder / f"average-{decay}.safetensors", average.network.state_dict())


def curriculum_of(config: ConsistencyConfig) -> Curriculum:
    """The stages of a run; those of continuous levels are ``ratio_stages`` of equal length.

    Raises:
        InputError: they do not fit the run.
    """
    if config.levels == "grid":
        return Curriculum(config.run.steps, config.start_levels, config.end_levels, config.growth)
    return Curriculum(config.run.steps, 1, 2 ** (config.ratio_stages - 1))


def calibrated(roots: Tensor) -> float:
    """The scale of a penalty that errors (n,) call for: their median, and never zero."""
    return max(float(roots.median()), 1e-6)


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
