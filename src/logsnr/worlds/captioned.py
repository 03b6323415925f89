"""What the denoisers of all worlds share: networks trained together on captioned latents, each with an average."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from logsnr.data.captions import Wording
from logsnr.models.ema import averaged
from logsnr.train.method import Batch, Group, Loss, load_module_state, module_state
from logsnr.train.muon import Muon, split_matrices
from logsnr.worlds.config import DenoiserConfig
from logsnr.worlds.flow_config import FlowDenoiserConfig


class CaptionedMethod:
    """A denoising network and its text encoders, trained jointly; each kind adds its networks and its ``loss``.

    ``parts`` are the classes of the networks by the names that they have in a pipeline, ``pipeline`` makes one of them:
    ``(autoencoder, tokenizer, **networks)``. ``factors`` (n, k) are what the captions may say of each item beside its
    class, and ``show(**networks)`` turns trained networks into preview images.
    """

    parts: ClassVar[Mapping[str, Any]]
    pipeline: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        config: DenoiserConfig | FlowDenoiserConfig,
        networks: dict[str, Any],
        tokenizer: CLIPTokenizer,
        captions: Wording,
        factors: Tensor,
        show: Callable[..., Tensor] | None = None,
    ):
        self.networks, self.learning_rate, self.muon = networks, config.learning_rate, config.optimizer == "muon"
        self.tokenizer, self.captions, self.factors, self.show = tokenizer, captions, factors, show
        self.averages = {name: averaged(network, config.ema) for name, network in networks.items()}

    def loss(self, batch: Batch, step: int) -> Loss:
        raise NotImplementedError

    def start_from(self, folder: Path) -> None:
        """Take the weights of a pipeline's networks as the start of a new leg."""
        for name, network in self.networks.items():
            weights = self.parts[name].from_pretrained(folder / name, dtype=torch.float32).state_dict()
            network.load_state_dict(weights)
            self.averages[name].network.load_state_dict(weights)

    def modules(self) -> dict[str, nn.Module]:
        return {**self.networks, **{f"{name}_average": average for name, average in self.averages.items()}}

    def parameter_groups(self) -> list[Group]:
        if not self.muon:
            return [Group(list(network.parameters()), self.learning_rate) for network in self.networks.values()]
        parts = [split_matrices(dict(network.named_parameters())) for network in self.networks.values()]
        return [Group([p for part in kind for p in part], self.learning_rate) for kind in zip(*parts, strict=True)]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if not self.muon:
            return torch.optim.AdamW(groups, betas=(0.9, 0.99))
        matrices, others = groups
        return Muon([{**matrices, "orthogonal": True}, others])

    def draw_captions(self, batch: Batch) -> list[str]:
        """A fresh caption for each item of a batch."""
        return draw_captions(self.captions, self.factors, batch)

    def after_step(self, step: int) -> None:
        for name, average in self.averages.items():
            average.update_parameters(self.networks[name])

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return module_state(**self.modules()), {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        load_module_state(tensors, **self.modules())

    def preview(self) -> Tensor | None:
        return self.show(**{name: average.network for name, average in self.averages.items()}) if self.show else None

    def export(self, folder: Path) -> None:
        for name, average in self.averages.items():
            average.network.save_pretrained(folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")


def draw_captions(captions: Wording, factors: Tensor, batch: Batch) -> list[str]:
    """A fresh caption for each item of a batch, from four uniform draws; ``factors`` (n, k) are of all items."""
    draws, labels = batch.uniform(4).tolist(), batch["label"].tolist()
    rows = factors[batch["index"].cpu()].tolist()
    return [captions.caption(*item) for item in zip(labels, rows, draws, strict=True)]
