"""A training method of one's own: a small denoiser of scikit-learn's digits, stopped half way and resumed.

``python examples/own_method.py [OUT]`` writes OUT/digits.png, OUT/weights.safetensors, and the run itself in OUT/run. A
second call with the same OUT finds the run finished and only makes the picture again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import logsnr
from logsnr.core.artifact import save_tensors
from logsnr.core.random import sample_noise
from logsnr.data.digits import load_digits
from logsnr.models.denoiser import Conditioning, NetworkDenoiser
from logsnr.models.ema import averaged
from logsnr.schedules.families import Flow
from logsnr.schedules.grids import uniform_time
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.sample import sample_steps
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.train.preview import image_grid, save_picture


class Guess(nn.Module):
    """A perceptron that says the clean digits behind noisy ones (n, 1, 8, 8) at times (n,) or () with labels (n,)."""

    def __init__(self, width: int = 256):
        super().__init__()
        self.label = nn.Embedding(10, width)
        self.first, self.last = nn.Linear(64 + 3, width), nn.Linear(width, 64)
        self.middle = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, xt: Tensor, t: Tensor, label: Tensor) -> Tensor:
        times = t.expand(len(xt))[:, None]
        row = torch.cat([xt.flatten(1), times, (3 * times).sin(), (3 * times).cos()], 1)
        return self.last(self.middle(self.first(row) + self.label(label))).view_as(xt)


class DigitMethod:
    """Mean squared error of the clean digit on the rectified-flow schedule: all that ``fit`` asks of a method."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = Guess()
        self.average = averaged(self.network, 0.99)

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.network.parameters()), learning_rate=2e-3)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups)

    def loss(self, batch: Batch, step: int) -> Loss:
        x0, eps, t = batch["image"], batch.normal(1, 8, 8), batch.uniform()
        xt = torch.lerp(x0, eps, t[:, None, None, None])
        return Loss(functional.mse_loss(self.network(xt, t, batch["label"]), x0))

    def after_step(self, step: int) -> None:
        self.average.update_parameters(self.network)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> Tensor:
        denoiser = NetworkDenoiser(self.average.network, Flow(), "x0", lambda at: at.t)
        cond = Conditioning({"label": torch.arange(10).repeat_interleave(8)})
        start, grid = sample_noise(range(80), (1, 8, 8)), uniform_time(Flow(), 20)
        *_, made = sample_steps(denoiser, start, grid, Exponential(order=2), cond=cond)
        return made

    def export(self, folder: Path) -> None:
        save_tensors(folder / "weights.safetensors", self.average.network.state_dict())


def main(out: Path) -> None:
    """Train 400 steps, go away, come back with a new method object, and finish."""
    digits = load_digits("train")
    config = logsnr.FitConfig(steps=800, batch_size=128, decay="cosine", cpu=True, out=out / "run", resume=True)
    first = logsnr.fit(DigitMethod(), digits, config)
    for progress in first:
        if progress.step == 400:
            break
    first.close()  # saves a checkpoint; after a crash the run would go on from the last one on disk
    method = DigitMethod()
    for progress in logsnr.fit(method, digits, config):
        if progress.step % 100 == 0:
            print(f"step {progress.step} of {progress.steps}: loss {progress.logs['loss']:.3f}")
    method.export(out)
    print(save_picture(image_grid(method.preview(), columns=8, scale=4), out / "digits.png"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own_method"))
