"""The generator that replays: a UNet of diffusers that reads a class as text tokens and, if there is one, a prototype.

Tokens of a class are a fixed vector of its own and, of the prototype's quarters, fixed random features: nothing before
the keys and values is trained, so that what they say of an old class depends on their own weights alone. A dropped
class is the same null vector at every place, and an empty prototype. One token alone would leave keys no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional

from logsnr.continual.config import ContinualConfig
from logsnr.continual.prototypes import PrototypeBank
from logsnr.core.random import generator
from logsnr.core.types import Level, Prediction
from logsnr.metrics.judge import Judge, only
from logsnr.models.denoiser import Conditioning, NetworkDenoiser, Tree
from logsnr.schedules.grids import GRIDS
from logsnr.schedules.schedule import Schedule
from logsnr.schedules.scheduler_config import from_scheduler_config, kind_of, timestep_of
from logsnr.solvers.exponential import Exponential
from logsnr.solvers.noise import start_noise
from logsnr.solvers.sample import sample_steps

PATCHES = 4
"""Prototype tokens: the quarters of the image."""


class ReplayGenerator(nn.Module):
    """A network of images (n, *shape) conditioned on classes and their prototypes, with the schedule it learns by.

    ``learned`` are the classes of the experiences that it was trained in.
    """

    def __init__(self, config: ContinualConfig, shape: Sequence[int], prototypes: PrototypeBank):
        super().__init__()
        self.config, self.shape, self.prototypes = config, tuple(shape), prototypes
        torch.manual_seed(config.seed)
        self.unet = build_unet(config, shape)
        self.scheduler = DDPMScheduler(beta_schedule="linear", clip_sample=False, prediction_type=config.prediction)
        width = config.token_width
        quarter = shape[0] * (shape[1] // 2) * (shape[2] // 2)
        draws = generator(0, "generator tokens")
        self.register_buffer("null", _vector(draws, width), persistent=False)
        maps = 2 * torch.randn(PATCHES, quarter, width, generator=draws) / quarter**0.5
        self.register_buffer("patches", maps, persistent=False)
        self.learned: set[int] = set()
        self.schedule: Schedule = from_scheduler_config(self.scheduler.config)

    def class_vectors(self, labels: Tensor) -> Tensor:
        """Fixed vectors (n, width), each drawn from its class's number alone."""
        return torch.stack([_class_vector(label, self.config.token_width) for label in labels.tolist()]).to(
            labels.device
        )

    def condition(self, labels: Tensor, dropped: Tensor | None = None, *, shown: Tensor | None = None) -> Tree:
        """What the network reads of classes (n,), with the prototypes of those ``shown`` if others are.

        Of ``dropped`` rows (n,) it reads nothing.
        """
        prototypes = self.prototypes.images(labels if shown is None else shown)
        own, null = self.class_vectors(labels), self.null.expand(len(labels), -1)
        text = torch.stack([own] if self.config.lone_token else [null, own, *self._patch_tokens(prototypes)], 1)
        image = prototypes if self.config.conditioning != "tokens" else torch.zeros_like(prototypes)
        if dropped is not None:
            text = torch.where(dropped[:, None, None], self.null, text)
            image = torch.where(dropped[:, None, None, None], 0.0, image)
        return {"tokens": text, "image": image}

    def _patch_tokens(self, prototypes: Tensor) -> list[Tensor]:
        if self.prototypes.mode == "none" or self.config.conditioning == "concat":
            return [self.null.expand(len(prototypes), -1)] * PATCHES
        halves = [half for rows in prototypes.chunk(2, 2) for half in rows.chunk(2, 3)]
        return [(half.flatten(1) @ each).tanh() for half, each in zip(halves, self.patches, strict=True)]

    def forward(self, xt: Tensor, timesteps: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
        """What the network predicts of xt (n, *shape) at timesteps (n,)."""
        return self.unet(torch.cat([image, xt], 1), timesteps, encoder_hidden_states=tokens).sample

    def key_values(self) -> dict[str, nn.Parameter]:
        """The weights of keys and values that read tokens and are projected, by their names in the UNet."""
        ends = ("attn2.to_k.weight", "attn2.to_v.weight")[self.config.projected == "values" :]
        return {name: value for name, value in self.unet.named_parameters() if name.endswith(ends)}

    def old_tokens(self, classes: Sequence[int]) -> Tensor:
        """All token vectors (n, width) that keys and values read for classes, and for none."""
        tokens = self.condition(torch.tensor(list(classes)))["tokens"]
        return torch.cat([tokens.flatten(0, 1), self.null[None]]).detach()

    def denoiser(self, guidance_scale: float) -> NetworkDenoiser:
        """Itself as solvers call it."""
        config: Any = self.scheduler.config

        def network(xt: Tensor, timestep: Tensor, **cond: Tensor) -> Tensor:
            return self(xt, timestep.expand(len(xt)), **cond)

        told = kind_of(config)
        return NetworkDenoiser(
            network, self.schedule, told, lambda at: timestep_of(config, at), guidance_scale=guidance_scale
        )

    def conditioning(self, labels: Tensor) -> Conditioning:
        """Classes (n,) with what guidance leads away from."""
        return Conditioning(self.condition(labels), self.condition(labels, torch.ones_like(labels, dtype=torch.bool)))

    @torch.no_grad()
    def draw(
        self,
        labels: Tensor,
        *,
        seeds: Sequence[int],
        config: ContinualConfig,
        guide: tuple[Judge, Tensor] | None = None,
    ) -> Tensor:
        """Images (n, *shape) of labels (n,), one a seed, by the solver told; a classifier of classes may guide."""
        denoiser = self.denoiser(config.guidance_scale)
        grid = GRIDS[config.sampling_grid](self.schedule, config.sampling_steps)
        solver = Exponential(config.sampling_order, config.sampling_rho)
        guided = ByClassifier(denoiser, *guide, labels, config.classifier_guidance) if guide else denoiser
        x = start_noise(seeds, self.shape, grid[0])
        self.eval()
        for made in sample_steps(guided, x, grid, solver, cond=self.conditioning(labels), seeds=seeds):
            x = made
        return x


class ByClassifier:
    """A denoiser whose clean estimate is moved up a classifier's log-probability of the class (DDGR's guidance).

    Only the probabilities of the classes that it has learned count.
    """

    def __init__(self, inner: NetworkDenoiser, classifier: Judge, learned: Tensor, labels: Tensor, scale: float):
        self.inner, self.classifier, self.learned = inner, classifier, learned
        self.labels, self.scale = labels, scale

    def __call__(self, xt: Tensor, level: Level, cond: Conditioning | None = None) -> Prediction:
        found = self.inner(xt, level, cond)
        if not self.scale:
            return found
        with torch.enable_grad():
            clean = found.x0.detach().clamp(-1, 1).requires_grad_()
            logs = only(self.classifier(clean), self.learned).log_softmax(1)[torch.arange(len(xt)), self.labels]
            slope = torch.autograd.grad(logs.sum(), clean)[0]
        x0 = found.x0 + self.scale * min(level.sigma**2 / level.alpha**2, 1.0) * slope
        return Prediction(x0, (xt - level.alpha * x0) / level.sigma)


def build_unet(config: ContinualConfig, shape: Sequence[int]) -> UNet2DConditionModel:
    """A UNet whose levels below the first read tokens; its input has the prototype's channels before the image's."""
    deeper = len(config.channels) - 1
    return UNet2DConditionModel(
        sample_size=shape[1],
        in_channels=2 * shape[0],
        out_channels=shape[0],
        block_out_channels=config.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        cross_attention_dim=config.token_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )


@lru_cache(maxsize=4096)
def _class_vector(label: int, width: int) -> Tensor:
    return _vector(generator(0, "class token", label), width)


def _vector(draws: torch.Generator, width: int) -> Tensor:
    """A vector of unit variance."""
    return functional.normalize(torch.randn(width, generator=draws), dim=0) * width**0.5
