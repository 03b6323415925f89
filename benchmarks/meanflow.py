"""MeanFlow (2505.13447) as a method that ``fit`` trains, to stand beside consistency training on the same data.

    z = (1 - t) x + t n,   v = n - x,   u(z, r, t)  ->  v - (t - r) du/dt

u is the mean velocity from r to t, so that x = n - u(n, 0, 1) takes one call. Its derivative along the flow, where z
moves by v, is one pass in forward mode, and is not trained. A row's squared error counts by 1 / (itself + 1e-3).
Deviates: times are told as they are, and no guidance is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from logsnr.consistency.curriculum import averaging_decay
from logsnr.core.artifact import save_tensors
from logsnr.models.ema import Average, averaged
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state

UNIT = 0.5
"""The deviation of the data, which flows want at 1."""
SAME, CENTRE = 0.75, -0.4
"""How often r = t, which is a plain flow; and the mean of the logits of both."""
_FLOOR = 1e-3


@dataclass
class MeanFlow:
    """Train ``module(z, times)`` -> u, with times (n, 2) of t and t - r, of samples (n, ...)."""

    module: nn.Module
    steps: int
    learning_rate: float
    average: Average[nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.average = averaged(self.module, averaging_decay(self.steps))

    def loss(self, batch: Batch, step: int) -> Loss:
        """The adaptively weighed error of the mean velocity."""
        x, noise = batch["latent"] / UNIT, batch.normal(*batch["latent"].shape[1:])
        draws = (CENTRE + batch.normal(2)).sigmoid()
        t, r = draws.amax(1), draws.amin(1)
        r = torch.where(batch.uniform() < SAME, t, r)
        wide = (-1, *[1] * (x.dim() - 1))
        z, velocity = x + t.view(wide) * (noise - x), noise - x
        mean, slope = mean_velocity(self.module, z, r, t, velocity)
        aim = (velocity - (t - r).view(wide) * slope).detach()
        errors = (mean - aim).square().flatten(1).sum(1)
        value = (errors / (errors.detach() + _FLOOR)).mean()
        return Loss(value, {"error": errors.mean().detach()})

    # What ``fit`` asks of a method

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.module, "average": self.average}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.module.parameters()), self.learning_rate)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups)

    def after_step(self, step: int) -> None:
        self.average.update_parameters(self.module)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        save_tensors(folder / "average.safetensors", self.average.network.state_dict())


def mean_velocity(
    network: Callable[[Tensor, Tensor], Tensor], z: Tensor, r: Tensor, t: Tensor, velocity: Tensor
) -> tuple[Tensor, Tensor]:
    """u(z, r, t) and its derivative along the flow, for z (n, ...) with this velocity and times (n,); r stays."""

    def of(z: Tensor, t: Tensor) -> Tensor:
        return network(z, torch.stack([t, t - r], 1))

    return torch.func.jvp(of, (z, t), (velocity, torch.ones_like(t)))


@torch.no_grad()
def generated(network: Callable[[Tensor, Tensor], Tensor], noise: Tensor, times: Sequence[float]) -> Tensor:
    """Samples from noise (n, ...), by one call from each of these times to the next, the last to data."""
    z = noise
    for t, r in zip(times, [*times[1:], 0.0], strict=True):
        told = torch.tensor([t, t - r]).expand(len(z), 2)
        z = z - (t - r) * network(z, told)
    return UNIT * z
