"""What a training method tells the loop: its parameters, its loss, and all the state that an exact resume needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from logsnr.core.random import generator


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate; ``maximize`` makes their player climb the loss that the others descend."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    maximize: bool = False


@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, and detached scalars to log beside it."""

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Batch:
    """The rows of one micro-batch, with random draws that do not depend on how the batch of the step was cut.

    ``data`` holds tensors whose first dimension is the micro-batch. Draws are made for the whole batch of the step from
    a generator keyed by (seed, step), and cut to this micro-batch, so that 2 x 4 rows see the noise of 1 x 8.
    """

    def __init__(self, data: dict[str, Tensor], rows: slice, num_rows: int, key: tuple[int, int], device: torch.device):
        self.data = data
        self._rows, self._num_rows, self._device = rows, num_rows, device
        self._generator = generator(key[0], "draws", key[1])

    def __getitem__(self, name: str) -> Tensor:
        return self.data[name]

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start

    @property
    def first(self) -> int:
        """The place of the first row among those of the whole batch of the step."""
        return self._rows.start

    def normal(self, *shape: int) -> Tensor:
        """Standard normal draws (rows, *shape)."""
        return self._cut(torch.randn((self._num_rows, *shape), generator=self._generator))

    def uniform(self, *shape: int) -> Tensor:
        """Uniform draws in [0, 1), (rows, *shape)."""
        return self._cut(torch.rand((self._num_rows, *shape), generator=self._generator))

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers in [low, high), (rows, *shape)."""
        return self._cut(torch.randint(low, high, (self._num_rows, *shape), generator=self._generator))

    def shared(self) -> float:
        """One uniform draw in [0, 1) that every row of the step has, in all micro-batches and processes."""
        return float(torch.rand((), generator=self._generator))

    def _cut(self, draws: Tensor) -> Tensor:
        return draws[self._rows].to(self._device)


class Dataset(Protocol):
    """Training items that are fetched by index, many at once."""

    def __len__(self) -> int: ...

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """Tensors whose first dimension follows ``indices``."""
        ...


class Method(Protocol):
    """One training objective over networks of its own; ``fit`` supplies batches, devices, checkpoints and logs."""

    def modules(self) -> dict[str, nn.Module]:
        """The networks that move to the device of the run."""
        ...

    def parameter_groups(self) -> list[Group]:
        """What is trained, and how fast."""
        ...

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over torch's parameter groups."""
        ...

    def loss(self, batch: Batch, step: int) -> Loss:
        """The mean loss of the rows of a micro-batch."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that an exact resume needs, weights included."""
        ...

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take back what ``state`` gave."""
        ...

    def preview(self) -> Tensor | None:
        """Images (n, channels, height, width) in [-1, 1] that show how far training is, or None."""
        ...

    def export(self, folder: Path) -> None:
        """Write what training made to a folder that exists."""
        ...


@runtime_checkable
class AfterStep(Protocol):
    """A method that acts on its weights after each optimiser step, such as an average or a projection."""

    def after_step(self, step: int) -> None:
        """Called with the number of finished steps."""
        ...


def module_state(**modules: nn.Module) -> dict[str, Tensor]:
    """The state dictionaries of several modules under ``name.key``."""
    return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}


def load_module_state(tensors: dict[str, Tensor], **modules: nn.Module) -> None:
    """Give back to each module what ``module_state`` took."""
    for name, module in modules.items():
        prefix = f"{name}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
