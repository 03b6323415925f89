"""The judges of a world: classifiers of real images, shifted at random where the data is not augmented by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.metrics.judge import Judge
from logsnr.models.ema import averaged
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.worlds.config import JudgeConfig


class JudgeMethod:
    """Cross entropy with label smoothing, of labels and of styles; the exported judge is the moving average."""

    def __init__(self, config: JudgeConfig, classes: tuple[str, ...], styles: tuple[str, ...] = ()):
        self.config = config
        torch.manual_seed(config.seed)
        self.network = Judge(
            config.architecture,
            channels=config.channels,
            size=config.size,
            width=config.width,
            num_features=config.num_features,
            classes=classes,
            styles=styles,
        )
        self.average = averaged(self.network, config.ema)

    def modules(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average}

    def parameter_groups(self) -> list[Group]:
        return [Group(list(self.network.parameters()), self.config.learning_rate, self.config.weight_decay)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups)

    def loss(self, batch: Batch, step: int) -> Loss:
        image, most = batch["image"], self.config.max_shift
        features = self.network.features(shifted(image, batch.integers(-most, most + 1, 2)) if most else image)
        value, accuracy = self._read(self.network.head(features), batch["label"])
        if self.network.style_head is None:
            return Loss(value, {"accuracy": accuracy})
        style_value, style_accuracy = self._read(self.network.read_styles(features), batch["style"])
        return Loss(value + style_value, {"accuracy": accuracy, "style_accuracy": style_accuracy})

    def _read(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy and accuracy."""
        value = functional.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        return value, (logits.argmax(1) == labels).float().mean()

    def after_step(self, step: int) -> None:
        self.average.update_parameters(self.network)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(network=self.network, average=self.average), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, network=self.network, average=self.average)

    def preview(self) -> None:
        return None

    def export(self, folder: Path) -> None:
        self.average.network.save_pretrained(folder)


def shifted(images: Tensor, offsets: Tensor) -> Tensor:
    """Images (n, channels, size, size), each rolled by its own offset (n, 2) of rows and columns."""
    size = images.shape[-1]
    places = torch.arange(size, device=images.device)
    rows = (places - offsets[:, :1]) % size
    columns = (places - offsets[:, 1:]) % size
    items = torch.arange(len(images), device=images.device)[:, None, None]
    return images[items, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
