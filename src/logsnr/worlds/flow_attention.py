"""Joint attention in which one token stands for many equal ones, as the zeros of an absent T5 are.

Without its T5, Stable Diffusion 3 (2403.03206) reads 256 zeros in its place. They have no positions, so they are equal
in every layer, and softmax weights of equal keys add up: one of them, its logits raised by log 256, is all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_ZEROS = 256
"""The zeros that a stock pipeline feeds in place of T5's tokens unless it is told otherwise."""


class BiasedJointAttention:
    """The joint attention of SD3 with its ``attention_mask`` added to the logits; diffusers' own processor ignores it.

    Reads image (n, image tokens, width), text (n, text tokens, width) and a mask that broadcasts to (n, heads, tokens,
    tokens), image first, and gives new image and text. Without a mask it does what diffusers' processor does.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        image, text = hidden_states, encoder_hidden_states
        query = _heads(attn, attn.to_q(image), attn.add_q_proj(text), attn.norm_q, attn.norm_added_q)
        key = _heads(attn, attn.to_k(image), attn.add_k_proj(text), attn.norm_k, attn.norm_added_k)
        value = _heads(attn, attn.to_v(image), attn.add_v_proj(text))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        of_image, of_text = mixed.transpose(1, 2).flatten(2).split([image.shape[1], text.shape[1]], 1)
        return attn.to_out[0](of_image), of_text if attn.context_pre_only else attn.to_add_out(of_text)


def _heads(attn: Any, image: Tensor, text: Tensor, *norms: nn.Module | None) -> Tensor:
    """Image and text under each other (n, heads, tokens, width of a head), each through its norm if it has one."""
    parts = [part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (image, text)]
    return torch.cat([norm(part) if norm else part for part, norm in zip(parts, norms or (None, None), strict=True)], 2)


def with_zeros(text: Tensor, num_image_tokens: int, *, count: int = NUM_ZEROS) -> tuple[Tensor, Tensor]:
    """Text (n, length, width) with one zero more, and the mask (1, 1, 1, tokens) that lets it count ``count`` times."""
    text = functional.pad(text, (0, 0, 0, 1))
    mask = text.new_zeros(num_image_tokens + text.shape[1])
    mask[-1] = math.log(count)
    return text, mask.view(1, 1, 1, -1)
