"""Judges: small classifiers, trained on real images, that say what an image shows and give features to compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.errors import UnsupportedError


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut that halves the resolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm_first = nn.GroupNorm(8, channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm_second = nn.GroupNorm(8, channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm_second(self.second(functional.silu(self.norm_first(self.first(x)))))
        return functional.silu(hidden + self.shortcut(x))


def _residual(channels: int, width: int) -> nn.ModuleList:
    stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width), nn.SiLU())
    sizes = [(width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
    return nn.ModuleList([stem, *(_Residual(*size) for size in sizes)])


def _plain(channels: int, width: int) -> nn.ModuleList:
    sizes = [(channels, width, 5), (width, 2 * width, 3), (2 * width, 4 * width, 3)]
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(i, o, k, 1, k // 2, bias=False), nn.GroupNorm(8, o), nn.ReLU(), nn.MaxPool2d(2))
        for i, o, k in sizes
    )


class Judge(ModelMixin, ConfigMixin):
    """A classifier of images (n, channels, size, size) in [-1, 1]; saved and loaded like any diffusers model.

    ``architecture`` is ``"residual"`` (strided residual blocks, mean pooling) or ``"plain"`` (convolutions, max pooling
    and a hidden layer), so that a model never has to be reported by the kind of judge that its training saw. A judge
    with ``styles`` reads them by ``style_head``, a second head on the same features.
    """

    @register_to_config
    def __init__(
        self,
        architecture: str = "residual",
        channels: int = 1,
        size: int = 32,
        width: int = 24,
        num_features: int = 96,
        classes: tuple[str, ...] = (),
        styles: tuple[str, ...] = (),
    ):
        super().__init__()
        if architecture not in ("residual", "plain"):
            raise ValueError(f"unknown judge architecture {architecture!r}: use 'residual' or 'plain'")
        self.stages = _residual(channels, width) if architecture == "residual" else _plain(channels, width)
        pooled = 4 * width if architecture == "residual" else 4 * width * (size // 8) ** 2
        self.hidden = nn.Linear(pooled, num_features)
        self.head = nn.Linear(num_features, len(classes))
        self.style_head = nn.Linear(num_features, len(styles)) if styles else None

    def maps(self, images: Tensor) -> list[Tensor]:
        """Feature maps after each stage, first to last: (n, channels, height, width) each."""
        outputs = []
        for stage in self.stages:
            images = stage(images)
            outputs.append(images)
        return outputs

    def pool(self, last_map: Tensor) -> Tensor:
        """Features (n, num_features) from the last of ``maps``."""
        pooled = last_map.mean((2, 3)) if self.config["architecture"] == "residual" else last_map.flatten(1)
        return functional.silu(self.hidden(pooled))

    def perceive(self, images: Tensor) -> list[Tensor]:
        """All that it sees: its maps, and the features (n, num_features) last."""
        maps = self.maps(images)
        return [*maps, self.pool(maps[-1])]

    def features(self, images: Tensor) -> Tensor:
        """Features (n, num_features) in which sets of images are compared."""
        return self.pool(self.maps(images)[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes)."""
        return self.head(self.features(images))

    def read_styles(self, features: Tensor) -> Tensor:
        """Logits (n, styles) of features (n, num_features).

        Raises:
            UnsupportedError: the judge reads no styles.
        """
        if self.style_head is None:
            raise UnsupportedError("this judge reads no styles: it was trained on a data set without any")
        return self.style_head(features)


def perceptual_errors(made: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Squared errors (n,) of what a judge perceives, relative to its targets' mean squares, averaged over stages."""
    ratios = [(m - t).square().flatten(1).mean(1) / t.square().mean() for m, t in zip(made, targets, strict=True)]
    return torch.stack(ratios).mean(0)


def only(logits: Tensor, classes: Tensor) -> Tensor:
    """Logits (n, all classes) with those of other classes than these at minus infinity."""
    masked = torch.full_like(logits, -torch.inf)
    masked[:, classes] = logits[:, classes]
    return masked


@torch.no_grad()
def judge_images(judge: Judge, images: Tensor, *, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Features (n, num_features) and logits (n, classes) of images (n, channels, size, size) in [-1, 1]."""
    parts = [judge.features(chunk) for chunk in images.split(batch_size)]
    features = torch.cat(parts) if parts else images.new_zeros(0, judge.config["num_features"])
    return features, judge.head(features)
