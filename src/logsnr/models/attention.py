"""Joint attention in which one token stands for many equal ones, as the zeros of an absent T5 are.

Without its T5, Stable Diffusion 3 (2403.03206) reads 256 zeros in its place. They have no positions, so they are equal
in every layer, and softmax weights of equal keys add up: one of them, its logits raised by log 256, is all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

NUM_ZEROS = 256
"""The zeros that a stock pipeline feeds in place of T5's tokens unless it is told otherwise."""


class LastCounts(TorchFunctionMode):
    """Inside the block, attention over image and text (n, tokens, width) counts the last token ``count`` times.

    Other attention, over another number of tokens, stays as it is, and the network itself is not touched: its
    processors have to call torch's ``scaled_dot_product_attention`` without a mask, as diffusers' joint one does.
    """

    def __init__(self, num_tokens: int, count: int = NUM_ZEROS):
        super().__init__()
        self.bias = torch.zeros(1, 1, 1, num_tokens)
        self.bias[..., -1] = math.log(count)

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and args[1].shape[-2] == self.bias.shape[-1]:
            kwargs = {**kwargs, "attn_mask": self.bias.to(args[0])}
        return func(*args, **kwargs)


def num_image_tokens(transformer: Any, xt: Tensor) -> int:
    """How many tokens a transformer makes of each latent (n, channels, height, width)."""
    return xt[0, 0].numel() // transformer.config.patch_size**2


def zeros_once(
    transformer: Any, network: Callable[..., Tensor], wrap: Callable[..., Callable[..., Tensor]], *, length: int
) -> Callable[..., Tensor]:
    """``wrap(network)``, but reading one zero where the text (n, length + 256, width) ends in 256 and they prevail.

    ``network(xt, timestep, **cond)`` calls the transformer. The numbers stay, up to rounding; any other text, and every
    call with gradients, goes to the network as it is.
    """

    def short(xt: Tensor, timestep: Tensor, *, text_and_zero: Tensor, **cond: Any) -> Tensor:
        with LastCounts(num_image_tokens(transformer, xt) + length + 1):
            return network(xt, timestep, encoder_hidden_states=text_and_zero, **cond)

    whole, brief = wrap(network), wrap(short)

    def call(xt: Tensor, timestep: Tensor, *, encoder_hidden_states: Tensor, **cond: Any) -> Tensor:
        text = encoder_hidden_states
        prevail = text.shape[1] == length + NUM_ZEROS and num_image_tokens(transformer, xt) + length < NUM_ZEROS
        if torch.is_grad_enabled() or "prompt" in cond or not prevail or bool(text[:, length:].any()):
            return whole(xt, timestep, encoder_hidden_states=text, **cond)
        return brief(xt, timestep, text_and_zero=text[:, : length + 1], **cond)

    return call
