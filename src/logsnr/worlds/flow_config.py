"""Sizes and hyper-parameters of a world's flow transformer; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FlowDenoiserConfig:
    """An SD3Transformer2DModel and two CLIP text encoders, trained jointly to predict the velocity of latents.

    A pipeline reads each encoder's last hidden layer but one: with (2, 1) layers, tokens after one and after none. That
    suffices, for the transformer's own layers attend over the text; all layers serve the pooled text.
    """

    layers: int = 5
    heads: int = 4
    width: int = 128
    patch_size: int = 2
    latent_channels: int = 4
    latent_size: int = 8
    text_widths: tuple[int, int] = (96, 32)
    text_layers: tuple[int, int] = (2, 1)
    text_length: int = 16
    time_mean: float = 0.0
    time_std: float = 1.0
    """Training times are sigmoid(time_mean + time_std * normal), by 2403.03206."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon moves matrices by orthogonal steps, which cost more each; see ``train.muon``."""
    learning_rate: float = 1e-3
    ema: float = 0.9995
    seed: int = 0
