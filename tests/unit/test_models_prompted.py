"""Prompted attention: the formula, layer by layer; rows and threads apart; and a layer that does not read is loud."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, JointAttnProcessor2_0
from peft import LoraConfig
from pipelines import tiny_pixart, tiny_sd, tiny_sd3
from torch import Tensor, nn
from torch.nn import functional

from logsnr.core.errors import InputError, UnsupportedError
from logsnr.models.low_rank import LowRank
from logsnr.models.pipeline import denoiser_of, encode_prompts, latent_shape, network_of
from logsnr.models.prompted import (
    Prompt,
    call_prompted,
    change_widths,
    projections,
    prompt_width,
    prompted,
    reading,
    side_by_side,
    with_prompts,
)
from logsnr.solvers.trajectory import state_at

PROMPTS = ["a bag", "the small boot", "a dark sneaker"]


def prompt_for(network: nn.Module, layers: str = "all", *, tokens: int = 3, seed: int = 0) -> Prompt:
    draws = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, tokens, prompt_width(network, layers), generator=draws)
    return Prompt(keys, values, layers)


def changing(network: nn.Module, rank: int, *, seed: int = 0) -> Prompt:
    """A prompt that brings a low-rank change along."""
    draws = torch.Generator().manual_seed(seed)
    parts = (torch.randn(2, rank, size, generator=draws) / 4 for size in change_widths(network, "all"))
    return replace(prompt_for(network, seed=seed), change=LowRank(*parts))


class Formula(AttnProcessor2_0):
    """Keys and values of a cross-attention by the paper's formula, head by head."""

    def __init__(self, prompt: Prompt):
        super().__init__()
        self.prompt = prompt

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        rows = [p.expand(len(hidden_states), -1, -1) for p in (self.prompt.keys, self.prompt.values)]
        key, value = (
            w(torch.cat([encoder_hidden_states, p], 1)) for w, p in zip((attn.to_k, attn.to_v), rows, strict=True)
        )
        parts = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (attn.to_q(hidden_states), key, value))
        query, key, value = parts
        shares = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        return attn.to_out[0]((shares @ value).transpose(1, 2).flatten(2))


def inputs(pipe: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    x = torch.randn(len(PROMPTS), *latent_shape(pipe), generator=torch.Generator().manual_seed(1))
    return x, torch.tensor(500.0), dict(encode_prompts(pipe, PROMPTS, guided=False).values)


@torch.no_grad()
def output(pipe: Any, prompts: list[Prompt | None]) -> Tensor:
    x, timestep, cond = inputs(pipe)
    return denoiser_of(pipe).network(x, timestep, **with_prompts(cond, prompts))


@pytest.mark.parametrize("layers", ["mid", "midout", "all"])
def test_the_layers_read_it_by_the_formula(layers: str) -> None:
    pipe = tiny_sd()
    prompt, unet = prompt_for(pipe.unet, layers), pipe.unet
    found, plain = output(pipe, [prompt] * 3), output(pipe, [None] * 3)
    starts = {"mid": "mid_block", "midout": ("mid_block", "up_blocks"), "all": ""}[layers]
    read = {name for name in unet.attn_processors if ".attn2." in name and name.startswith(starts)}
    assert len(read) == len(projections(unet, layers))
    unet.set_attn_processor({n: Formula(prompt) if n in read else AttnProcessor2_0() for n in unet.attn_processors})
    torch.testing.assert_close(found, output(pipe, [None] * 3), atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 1e-3


class JointFormula(JointAttnProcessor2_0):
    """Joint attention in which the text's keys and values have the prompt's behind them."""

    def __init__(self, prompt: Prompt):
        self.prompt = prompt

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        text, count = encoder_hidden_states, len(hidden_states)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        more = [p.expand(count, -1, -1) for p in (self.prompt.keys, self.prompt.values)]
        query = torch.cat([attn.to_q(hidden_states), attn.add_q_proj(text)], 1)
        key = torch.cat([attn.to_k(hidden_states), attn.add_k_proj(torch.cat([text, more[0]], 1))], 1)
        value = torch.cat([attn.to_v(hidden_states), attn.add_v_proj(torch.cat([text, more[1]], 1))], 1)
        mixed = functional.scaled_dot_product_attention(split(query), split(key), split(value))
        image, said = mixed.transpose(1, 2).flatten(2).split([hidden_states.shape[1], text.shape[1]], 1)
        return attn.to_out[0](image), said if attn.context_pre_only else attn.to_add_out(said)


@pytest.mark.parametrize("layers", ["mid", "midout", "all"])
def test_joint_attention_reads_it_too(layers: str) -> None:
    pipe = tiny_sd3()
    network = pipe.transformer
    prompt = prompt_for(network, layers)
    found, plain = output(pipe, [prompt] * 3), output(pipe, [None] * 3)
    for block in network.transformer_blocks:
        if any(block.attn.add_k_proj is key for key, _ in projections(network, layers)):
            block.attn.set_processor(JointFormula(prompt))
    torch.testing.assert_close(found, output(pipe, [None] * 3), atol=1e-5, rtol=1e-5)
    assert (found - plain).abs().max() > 1e-5


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_rows_with_and_without_a_prompt_go_in_one_batch(make: Any) -> None:
    pipe = make()
    network = network_of(pipe)
    short, long = prompt_for(network, tokens=2), prompt_for(network, tokens=4, seed=1)
    mixed = output(pipe, [short, None, long])
    for row, prompt in enumerate((short, None, long)):
        torch.testing.assert_close(mixed[row], output(pipe, [prompt] * 3)[row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny_sd, tiny_sd3])
def test_what_a_key_brings_along_changes_the_projections(make: Any) -> None:
    pipe = make()
    network = network_of(pipe)
    first, second = changing(network, 2), changing(network, 3, seed=1)
    plain, keyed = replace(first, change=None), output(pipe, [first] * 3)
    mixed = output(pipe, [plain, None, second])
    for row, prompt in enumerate((plain, None, second)):
        torch.testing.assert_close(mixed[row], output(pipe, [prompt] * 3)[row], atol=1e-5, rtol=1e-4)
    both = side_by_side([first, plain, second])
    assert (both.change.rank, len(both.keys)) == (5, 9)
    together, alone = output(pipe, [both] * 3), side_by_side([plain, plain, replace(second, change=None)])
    for prompt in (first, second):  # by the formula: W + U D
        for place, pair in enumerate(projections(network, "all")):
            for side, module in enumerate(pair):
                inputs_, outputs = module.in_features, module.out_features
                down = prompt.change.down[side, :, place * inputs_ : (place + 1) * inputs_]
                up = prompt.change.up[side, :, place * outputs : (place + 1) * outputs]
                module.weight.data += up.T @ down
        if prompt is first:
            torch.testing.assert_close(keyed, output(pipe, [plain] * 3), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, output(pipe, [alone] * 3), atol=2e-5, rtol=1e-4)
    assert (keyed - output(pipe, [plain] * 3)).abs().max() > 1e-4
    with pytest.raises(InputError, match="do not fit"):
        output(pipe, [replace(first, change=LowRank(first.change.down[..., 1:], first.change.up))] * 3)
    with pytest.raises(InputError, match="unlock them one by one"):
        side_by_side([first, replace(second, layers="mid")])


def test_without_tokens_nothing_changes_by_a_bit() -> None:
    pipe = tiny_sd()
    x, timestep, cond = inputs(pipe)
    empty = prompt_for(pipe.unet, tokens=0)
    with torch.no_grad():
        stock = pipe.unet(x, timestep, cond["encoder_hidden_states"]).sample
        with reading(pipe.unet, empty):
            assert torch.equal(pipe.unet(x, timestep, cond["encoder_hidden_states"]).sample, stock)
        with reading(pipe.unet, prompt_for(pipe.unet)):
            assert not torch.equal(pipe.unet(x, timestep, cond["encoder_hidden_states"]).sample, stock)
        assert torch.equal(pipe.unet(x, timestep, cond["encoder_hidden_states"]).sample, stock)
    assert torch.equal(output(pipe, [None] * 3), stock)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in pipe.unet.modules())


def test_tokens_have_no_order_but_keys_belong_to_values() -> None:
    pipe, turned = tiny_sd(), torch.tensor([2, 0, 1])
    prompt = prompt_for(pipe.unet)
    found = output(pipe, [prompt] * 3)
    both = output(pipe, [Prompt(prompt.keys[turned], prompt.values[turned], "all")] * 3)
    torch.testing.assert_close(found, both, atol=1e-6, rtol=1e-5)
    one = output(pipe, [Prompt(prompt.keys[turned], prompt.values, "all")] * 3)
    assert (found - one).abs().max() > 1e-4


@pytest.mark.parametrize("both", [True, False])
def test_guidance_gives_it_to_one_half_or_both(both: bool) -> None:
    pipe = tiny_sd()
    x, _, _ = inputs(pipe)
    prompt = replace(prompt_for(pipe.unet), half="both" if both else "conditional")
    denoiser, plain = denoiser_of(pipe, guidance_scale=3.0), denoiser_of(pipe)
    cond, level = encode_prompts(pipe, PROMPTS), denoiser.schedule.level(0.5)
    with torch.no_grad():
        found = denoiser(x, level, prompted(cond, [prompt] * 3)).eps
        keyed = plain.output(x, level, with_prompts(cond.values, [prompt] * 3))
        other = plain.output(x, level, with_prompts(cond.unconditional, [prompt if both else None] * 3))
    torch.testing.assert_close(found, other.lerp(keyed, 3.0), atol=1e-5, rtol=1e-4)


def test_a_stock_pipeline_reads_it_whatever_its_processors_are() -> None:
    pipe = tiny_sd()
    prompt = prompt_for(pipe.unet)

    def images() -> Tensor:
        draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        return torch.from_numpy(pipe(["a bag"] * 2, num_inference_steps=2, generator=draws, output_type="np").images)

    stock = images()
    with reading(pipe.unet, prompt):
        keyed = images()
    assert (keyed - stock).abs().max() > 1e-3
    for change in (pipe.enable_attention_slicing, pipe.unet.set_default_attn_processor):
        change()
        with reading(pipe.unet, prompt):
            torch.testing.assert_close(images(), keyed, atol=1e-3, rtol=1e-3)


def test_fused_projections_are_loud() -> None:
    pipe = tiny_sd()
    prompt = prompt_for(pipe.unet)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(UnsupportedError, match="did not read the prompt"):
        output(pipe, [prompt] * 3)
    pipe.unet.unfuse_qkv_projections()
    assert output(pipe, [prompt] * 3).isfinite().all()


def test_adapters_see_the_prompt_too() -> None:
    pipe = tiny_sd()
    prompt = prompt_for(pipe.unet)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False), "extra")
    adapted = output(pipe, [prompt] * 3)
    pipe.unet.fuse_lora()
    pipe.unet.unload_lora()
    torch.testing.assert_close(adapted, output(pipe, [prompt] * 3), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["mid", "all"])
def test_a_mask_of_the_text_leaves_the_prompt_seen(layers: str) -> None:
    pipe = tiny_sd()
    x, timestep, cond = inputs(pipe)
    text, prompt = cond["encoder_hidden_states"], prompt_for(pipe.unet, layers)
    mask = (torch.arange(text.shape[1]) < 4).expand(len(text), -1)
    with torch.no_grad(), reading(pipe.unet, prompt):
        short = pipe.unet(x, timestep, text[:, :4]).sample
        masked = pipe.unet(x, timestep, text, encoder_attention_mask=mask).sample
        whole = pipe.unet(x, timestep, text).sample
    torch.testing.assert_close(masked, short, atol=1e-5, rtol=1e-4)
    assert (whole - short).abs().max() > 1e-4


def test_another_thread_may_meet_half_a_hook() -> None:
    pipe, found = tiny_sd(), []
    with reading(pipe.unet, prompt_for(pipe.unet)):
        for module in pipe.unet.modules():  # as they are while torch puts a hook up or takes it down
            module._forward_pre_hooks_with_kwargs.clear()
        thread = threading.Thread(target=lambda: found.append(output(pipe, [None] * 3)))
        thread.start()
        thread.join()
        output(pipe, [None] * 3)
    assert torch.equal(found[0], output(pipe, [None] * 3))


def test_threads_read_their_own_prompt() -> None:
    pipe = tiny_sd()
    prompts = [prompt_for(pipe.unet), None, prompt_for(pipe.unet, seed=1), None]
    expected = [output(pipe, [prompt] * 3) for prompt in prompts]
    found: dict[tuple[int, int], Tensor] = {}

    def run(place: int) -> None:
        for turn in range(6):
            found[place, turn] = output(pipe, [prompts[place]] * 3)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24
    for (place, _), value in found.items():
        torch.testing.assert_close(value, expected[place], atol=1e-6, rtol=1e-5)


def test_trajectories_and_gradients_pass_through_it() -> None:
    pipe = tiny_sd()
    prompt = prompt_for(pipe.unet, "mid")
    keys = prompt.keys.clone().requires_grad_(True)
    x, timestep, cond = inputs(pipe)
    call = denoiser_of(pipe).network

    def loss(keys: Tensor) -> Tensor:
        return call(x, timestep, **with_prompts(cond, [Prompt(keys, prompt.values, "mid")] * 3)).square().sum()

    (slope,) = torch.autograd.grad(loss(keys), keys)
    step = torch.zeros_like(prompt.keys)
    step[1, 2] = 1e-2
    with torch.no_grad():
        measured = (loss(prompt.keys + step) - loss(prompt.keys - step)) / 2e-2
    torch.testing.assert_close(slope[1, 2], measured, atol=1e-3, rtol=2e-2)
    denoiser = denoiser_of(pipe, guidance_scale=2.0, replay=True)
    levels = [denoiser.schedule.level(t) for t in (0.9, 0.5, 0.2)]
    keyed, plain = (
        state_at(denoiser, x, levels, 2, cond=prompted(encode_prompts(pipe, PROMPTS), [given] * 3))
        for given in (prompt, None)
    )
    assert (keyed - plain).abs().max() > 1e-3


def test_what_does_not_fit_is_refused() -> None:
    pipe = tiny_sd()
    wide = Prompt(torch.zeros(2, 7), torch.zeros(2, 7), "mid")
    with pytest.raises(InputError, match="width 16"):
        output(pipe, [wide] * 3)
    with pytest.raises(InputError, match="no layers 'some'"):
        projections(pipe.unet, "some")
    with pytest.raises(InputError, match="one a row"):
        with_prompts(inputs(pipe)[2], [None])
    with pytest.raises(UnsupportedError, match="cannot read a prompt"):
        projections(network_of(tiny_pixart()), "mid")
    prompt = prompt_for(pipe.unet)
    with pytest.raises(UnsupportedError, match="was not called in this thread"), reading(pipe.unet, prompt):
        pass
    half = replace(prompt_for(pipe.unet), half="conditional")
    with pytest.raises(InputError, match="conditional half"), reading(pipe.unet, half):
        pass
    pipe.unet.enable_gradient_checkpointing()
    x, timestep, cond = inputs(pipe)
    with pytest.raises(UnsupportedError, match="checkpointing"):
        call_prompted(
            pipe.unet, denoiser_of(pipe).network, x, timestep, with_prompts(cond, [prompt_for(pipe.unet)] * 3)
        )
