"""Sizes and hyper-parameters of a world's networks; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from logsnr.train.config import FitConfig
from logsnr.worlds.flow_config import FlowDenoiserConfig


@dataclass(frozen=True)
class JudgeConfig:
    """One judge and how it is trained."""

    architecture: Literal["residual", "plain"] = "residual"
    channels: int = 1
    size: int = 32
    width: int = 24
    num_features: int = 96
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    max_shift: int = 2
    """Pixels by which an image is rolled each way; 0 where the data set augments its images itself."""
    ema: float = 0.995
    seed: int = 0


@dataclass(frozen=True)
class AutoencoderConfig:
    """An AutoencoderKL and its loss weights."""

    channels: int = 1
    size: int = 32
    block_channels: tuple[int, ...] = (16, 48, 96)
    latent_channels: int = 4
    learning_rate: float = 2e-3
    feature_weight: float = 1.0
    kl_weight: float = 5e-4
    ema: float = 0.998
    seed: int = 0


@dataclass(frozen=True)
class DenoiserConfig:
    """A UNet2DConditionModel and a CLIP text encoder, trained jointly on latents.

    They learn to predict the noise, or v (2202.00512), which weighs what is decided at high noise as much as the rest:
    which of a thousand concepts an image shows.
    """

    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    block_channels: tuple[int, ...] = (64, 96)
    layers_per_block: int = 1
    heads: int = 4
    latent_channels: int = 4
    latent_size: int = 8
    text_width: int = 128
    text_layers: int = 2
    text_length: int = 16
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon moves matrices by orthogonal steps, which cost more each; see ``train.muon``."""
    learning_rate: float = 1e-3
    ema: float = 0.9995
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """How a world is made: its networks, and the run of each stage in the order of ``STAGES``."""

    name: str
    judge: JudgeConfig
    judge_second: JudgeConfig
    autoencoder: AutoencoderConfig
    denoiser: DenoiserConfig | FlowDenoiserConfig
    runs: dict[str, FitConfig]
    data: Literal["fashion", "emoji"] = "fashion"
    """The data set, as ``worlds/data.py`` names it."""
    keeps: str | None = None
    """The embedded world whose judges and autoencoder this one has."""


STAGES = ("judge", "judge_second", "autoencoder", "denoiser")

FASHION = Recipe(
    name="fashion",
    judge=JudgeConfig(),
    judge_second=JudgeConfig("plain", width=32, num_features=128, seed=1),
    autoencoder=AutoencoderConfig(),
    denoiser=DenoiserConfig(),
    runs={
        "judge": FitConfig(steps=4700, batch_size=128, decay="cosine", seed=0),
        "judge_second": FitConfig(steps=4700, batch_size=128, decay="cosine", seed=1),
        "autoencoder": FitConfig(steps=4000, batch_size=64, decay="cosine", seed=2, preview_every=500),
        "denoiser": FitConfig(steps=12000, batch_size=64, decay="cosine", warmup=200, seed=3, preview_every=2000),
    },
)
EMOJI = Recipe(
    name="emoji",
    data="emoji",
    judge=JudgeConfig(channels=3, max_shift=0),
    judge_second=JudgeConfig("plain", channels=3, width=32, max_shift=0, seed=1),
    autoencoder=AutoencoderConfig(channels=3, block_channels=(24, 48, 80)),
    denoiser=DenoiserConfig("v_prediction", text_width=88, text_length=24, optimizer="muon"),
    runs={
        "judge": FitConfig(steps=7000, batch_size=128, decay="cosine", seed=0),
        "judge_second": FitConfig(steps=6000, batch_size=128, decay="cosine", seed=1),
        "autoencoder": FitConfig(steps=3000, batch_size=64, decay="cosine", seed=2, preview_every=1000),
        "denoiser": FitConfig(steps=10000, batch_size=64, decay="cosine", warmup=200, seed=3, preview_every=2000),
    },
)
FASHION_FLOW = replace(
    FASHION,
    name="fashion-flow",
    keeps="fashion",
    denoiser=FlowDenoiserConfig(optimizer="muon"),
    runs={
        **FASHION.runs,
        "denoiser": FitConfig(steps=14000, batch_size=64, decay="cosine", warmup=500, seed=4, preview_every=2000),
    },
)
RECIPES = {recipe.name: recipe for recipe in (FASHION, EMOJI, FASHION_FLOW)}
FEW_STEP = {"fashion-few": "fashion"}
"""Embedded models that sample in one or two calls, and the world that each was trained from."""
