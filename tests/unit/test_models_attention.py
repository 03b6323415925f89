"""Attention: the zeros of an absent T5 read once give the numbers of the stock network, and touch no pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from pipelines import tiny_sd3
from torch import Tensor

from logsnr.core.types import Level
from logsnr.models import replay
from logsnr.models.attention import NUM_ZEROS, LastCounts, num_image_tokens
from logsnr.models.denoiser import Conditioning
from logsnr.models.pipeline import denoiser_of, encode_prompts

LEVEL = Level(0.4, 0.6, 0.4)
PROMPTS = ["a photo of a bag", "a dark sneaker"]


@pytest.fixture
def pipe() -> StableDiffusion3Pipeline:
    pipe = tiny_sd3()
    pipe.transformer.eval()
    return pipe


def watched(pipe: Any) -> list[int]:
    """The lengths of the text that the transformer reads from now on."""
    seen, forward = [], pipe.transformer.forward

    def reading(xt: Tensor, *rest: Any, encoder_hidden_states: Tensor, **cond: Any) -> Any:
        seen.append(encoder_hidden_states.shape[1])
        return forward(xt, *rest, encoder_hidden_states=encoder_hidden_states, **cond)

    pipe.transformer.forward = reading
    return seen


def predicted(pipe: Any, cond: Conditioning, *, fast: bool, size: int = 8) -> Tensor:
    xt = torch.randn(2, 4, size, size, generator=torch.Generator().manual_seed(1))
    return denoiser_of(pipe, guidance_scale=2.0, replay=fast)(xt, LEVEL, cond).x0


@torch.no_grad()
def test_zeros_read_once_give_the_same_numbers_recorded_or_not(
    pipe: StableDiffusion3Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "CALLS_BEFORE_RECORDING", 2)
    processors, cond = pipe.transformer.attn_processors, encode_prompts(pipe, PROMPTS)
    assert cond.values["encoder_hidden_states"].shape == (2, 8 + NUM_ZEROS, 16)
    seen, expected = watched(pipe), predicted(pipe, cond, fast=False)
    for _ in range(5):
        torch.testing.assert_close(predicted(pipe, cond, fast=True), expected, rtol=0, atol=1e-5)
    assert seen == [8 + NUM_ZEROS] + [9] * 3  # plain; two calls and the recording; two replays
    assert pipe.transformer.attn_processors == processors


def nonzero(pipe: Any, cond: Conditioning) -> None:
    for tree in (cond.values, cond.unconditional or {}):
        tree["encoder_hidden_states"][:, -1] = 1.0


def hooked(pipe: Any, cond: Conditioning) -> None:
    pipe.transformer.transformer_blocks[0].register_forward_hook(lambda *_: None)


def with_t5(pipe: Any, cond: Conditioning) -> None:
    pipe.text_encoder_3 = torch.nn.Identity()


@pytest.mark.parametrize("change", [nonzero, hooked, with_t5])
@torch.no_grad()
def test_any_other_text_and_network_is_read_as_it_is(
    pipe: StableDiffusion3Pipeline, change: Callable[[Any, Conditioning], None]
) -> None:
    cond = encode_prompts(pipe, PROMPTS)
    change(pipe, cond)
    seen = watched(pipe)
    assert torch.equal(predicted(pipe, cond, fast=True), predicted(pipe, cond, fast=False))
    assert seen == [8 + NUM_ZEROS] * 2


def test_gradients_and_large_images_take_the_network_as_it_is(pipe: StableDiffusion3Pipeline) -> None:
    pipe.transformer = SD3Transformer2DModel.from_config({**pipe.transformer.config, "pos_embed_max_size": 16}).eval()
    cond, seen = encode_prompts(pipe, PROMPTS), watched(pipe)
    predicted(pipe, cond, fast=True)
    with torch.no_grad():
        predicted(pipe, cond, fast=True, size=32)
    assert seen == [8 + NUM_ZEROS] * 2


@pytest.mark.parametrize("norm", [None, "rms_norm"])
@torch.no_grad()
def test_the_last_token_counts_as_often_as_it_is_told(norm: str | None) -> None:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel.from_config({**tiny_sd3().transformer.config, "qk_norm": norm}).eval()
    xt, pooled, time = torch.randn(2, 4, 8, 8), torch.randn(2, 16), torch.tensor([3.0, 700.0])
    text = torch.randn(2, 6, 16)
    often = torch.cat([text, text[:, -1:].expand(-1, 4, -1)], 1)
    expected = transformer(xt, often, pooled, time).sample
    with LastCounts(num_image_tokens(transformer, xt) + 6, 5):
        found = transformer(xt, text, pooled, time).sample
        longer = transformer(xt, often, pooled, time).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert torch.equal(longer, expected)
    assert not torch.allclose(transformer(xt, text, pooled, time).sample, expected, atol=1e-3)
