"""Normalisation without a gain (2502.01441): activations of every sample are made of one size, and stay so.

A trained gain lets a network amplify a few channels, by which outliers of its targets grow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.errors import InputError

Norm = Literal["nsln", "nsln-channel", "ln", "gn"]


class NonScalingLayerNorm(nn.Module):
    """LayerNorm over a whole sample (channels, ...) whose gain is 1 for ever; only the bias is trained.

    The bias has a number for every element of ``shape``, or with a shape of (channels,) one a channel, which then fits
    every resolution. Inputs are (n, channels, ...); of attention, where space is flat, too.
    """

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-5):
        super().__init__()
        self.shape, self.eps = tuple(shape), eps
        self.register_buffer("weight", torch.ones(self.shape))
        self.bias = nn.Parameter(torch.zeros(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        whole = functional.layer_norm(x, x.shape[1:], eps=self.eps)
        if len(self.shape) == 1:
            return whole + self.bias.view(-1, *[1] * (x.dim() - 2))
        return whole + self.bias.view(x.shape[1:])


class ScalingLayerNorm(NonScalingLayerNorm):
    """The same with a trained gain, for comparison."""

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-5):
        super().__init__(shape, eps)
        del self.weight
        self.weight = nn.Parameter(torch.ones(self.shape))

    def forward(self, x: Tensor) -> Tensor:
        whole = functional.layer_norm(x, x.shape[1:], eps=self.eps)
        return whole * self.weight.view(x.shape[1:]) + self.bias.view(x.shape[1:])


@torch.no_grad()
def replace_norms(network: nn.Module, kind: Norm, probe: tuple[Tensor, ...], *, last_only: bool = False) -> list[str]:
    """Put norms of a kind in the place of every GroupNorm of a network, or of the last one, and return their names.

    ``probe`` are inputs of one forward pass, by which every norm's shape is found; "gn" leaves the network as it is.

    Raises:
        InputError: the network has no GroupNorm.
    """
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.GroupNorm)}
    if not norms:
        raise InputError("this network has no GroupNorm to replace: take a convolutional UNet")
    shapes = _shapes(network, norms, probe)
    called = list(shapes)  # in the order of the forward pass
    chosen = [] if kind == "gn" else called[-1:] if last_only else called
    for name in chosen:
        shape, eps = shapes[name], norms[name].eps
        made = (
            ScalingLayerNorm(shape, eps)
            if kind == "ln"
            else NonScalingLayerNorm(shape[:1] if kind == "nsln-channel" else shape, eps)
        )
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, made)
    return chosen


def _shapes(
    network: nn.Module, norms: dict[str, nn.GroupNorm], probe: tuple[Tensor, ...]
) -> dict[str, tuple[int, ...]]:
    """The shape of what each norm reads of one sample, in the order of the forward pass."""
    shapes: dict[str, tuple[int, ...]] = {}

    def reading(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(given[0].shape[1:])

        return hook

    hooks = [module.register_forward_pre_hook(reading(name)) for name, module in norms.items()]
    try:
        network(*probe)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
