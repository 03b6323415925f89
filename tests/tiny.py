"""A tiny training method with every part of the contract, and a tiny data set: what the tests of the loop run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.artifact import save_tensors
from logsnr.models.ema import averaged
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state


class Points:
    """Forty points in the plane with a target each."""

    def __init__(self) -> None:
        self.x = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[indices], "y": self.x[indices].prod(1, keepdim=True)}


class TinyMethod:
    """Regression with noise on the input, dropout, an average, and an adversary that raises the loss through a bias."""

    def __init__(self, *, dropout: float = 0.1) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 1))
        self.adversary = nn.Parameter(torch.zeros(2))
        self.average = averaged(self.network, 0.9)
        self.seen = 0

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.network.parameters()), 1e-2, 1e-2), Group([self.adversary], 1e-3, maximize=True)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups)

    def loss(self, batch: Batch, step: int) -> Loss:
        x = batch["x"] + 0.1 * batch.normal(2) + self.adversary
        value = functional.mse_loss(self.network(x), batch["y"])
        return Loss(value, {"reach": self.adversary.detach().norm()})

    def after_step(self, step: int) -> None:
        self.seen = step
        self.average.update_parameters(self.network)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {**module_state(**self.modules()), "adversary": self.adversary.detach()}, {"seen": self.seen}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())
        self.adversary.data.copy_(tensors["adversary"])
        self.seen = values["seen"]

    def preview(self) -> Tensor:
        return self.network[0].weight.detach().reshape(2, 1, 4, 4)

    def export(self, folder: Path) -> None:
        save_tensors(folder / "tiny.safetensors", self.state()[0])
