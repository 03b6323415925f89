"""MACE: attention is measured as diffusers computes it, leaves the name, and adapters become one weight exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from pipelines import tiny_sd, tiny_sd3
from torch import Tensor

import logsnr
from logsnr.core.errors import InputError, UnsupportedError
from logsnr.erasure.config import EraseConfig, preset
from logsnr.erasure.erase import erase_steps
from logsnr.erasure.mace import AttentionErasure, attention_of
from logsnr.models.pipeline import encode_prompts

TEMPLATES = ("a photo of a {}", "the small {}")


def config(*targets: str, steps: int = 20, **changes: object) -> EraseConfig:
    found = preset("mace", *targets)
    run = replace(found.run, steps=steps, batch_size=4)
    return replace(found, templates=TEMPLATES, trajectory_steps=4, anchor_images=2, run=run, **changes)


class Told(AttnProcessor):
    """Diffusers' plain attention, which says what its shares are."""

    def __init__(self, shares: list[Tensor]):
        super().__init__()
        self.shares = shares

    def __call__(self, attn: object, *given: object, **named: object) -> Tensor:
        plain = type(attn).get_attention_scores

        def scores(*inputs: Tensor) -> Tensor:
            found = plain(attn, *inputs)
            self.shares.append(found)
            return found

        attn.get_attention_scores = scores
        try:
            return super().__call__(attn, *given, **named)
        finally:
            del attn.get_attention_scores


def test_attention_is_what_diffusers_computes() -> None:
    pipe, theirs = tiny_sd(), []
    text = encode_prompts(pipe, ["a bag", "the boot"], guided=False).values["encoder_hidden_states"]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), attention_of(pipe.unet) as ours:
        pipe.unet(x, 500, text)
    processors = {name: Told(theirs) if ".attn2." in name else AttnProcessor() for name in pipe.unet.attn_processors}
    pipe.unet.set_attn_processor(processors)
    with torch.no_grad():
        pipe.unet(x, 500, text)
    assert len(ours) == len(theirs) > 1
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found.flatten(0, 1), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        pipe.unet(x, 500, text)
    assert len(ours) == len(theirs) // 2, "nothing is added after the block"


def test_a_name_is_found_in_every_template() -> None:
    pipe = tiny_sd()
    method = AttentionErasure(pipe, config("running shoe"), torch.zeros(1, 4, 8, 8))
    ids = pipe.tokenizer(["a photo of a running shoe", "the small running shoe"], padding="max_length").input_ids
    words = [[pipe.tokenizer.decode([token]) for token in row] for row in ids]
    marked = [
        [w.strip() for w, mark in zip(*row, strict=True) if mark] for row in zip(words, method.names, strict=True)
    ]
    method.scores.restore()
    assert ["".join(row).replace(" ", "") for row in marked] == ["runningshoe"] * 2


def test_attention_leaves_the_name_and_the_pipeline_comes_back() -> None:
    pipe = tiny_sd()
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    logs: list[float] = []
    delta = logsnr.erase(
        pipe,
        config=config("bag", "sneaker", steps=60, strength=4.0),
        progress=lambda found: logs.append(found.logs["loss"]) if found.logs else None,
    )
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
    assert logs[len(logs) // 2 - 1] < 0.9 * logs[0], "of the first target, whose run is the first half"
    assert set(delta.tensors) == {f"unet.{n}" for n in before if "attn2.to_k.weight" in n or "attn2.to_v.weight" in n}
    assert delta.record.method == "mace"


def test_gradient_checkpointing_is_refused() -> None:
    pipe = tiny_sd()
    pipe.unet.enable_gradient_checkpointing()
    with pytest.raises(UnsupportedError, match="switch gradient checkpointing off"):
        logsnr.erase(pipe, config=config("bag", steps=1))


def test_the_one_weight_has_what_the_adapters_learned() -> None:
    """The more the fusion heeds them, the less attention is left for the name."""
    pipe = tiny_sd()
    text = encode_prompts(pipe, ["a photo of a bag"], guided=False).values["encoder_hidden_states"]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    place, left = pipe.tokenizer("a photo of a bag").input_ids.index(pipe.tokenizer("bag").input_ids[1]), []
    for scale in (1e-6, 1e6):
        delta = logsnr.erase(pipe, config=config("bag", steps=60, strength=4.0, closed_form_scale=scale))
        delta.apply(pipe)
        with torch.no_grad(), attention_of(pipe.unet) as seen:
            pipe.unet(x, 300, text.expand(2, -1, -1))
        delta.revert(pipe)
        left.append(sum(float(shares[..., place].square().mean()) for shares in seen))
    assert left[1] < 0.8 * left[0]


def test_steps_count_over_all_targets() -> None:
    steps = [(found.step, found.steps) for found in erase_steps(tiny_sd(), config("bag", "sneaker", steps=2))]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_the_closed_forms_are_brute_force_least_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    """With adapters that were not trained, the fusion keeps the refined weight; both against stacked equations."""
    pipe, name = tiny_sd(), "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    wanted = config("bag", steps=1, learning_rate=1e-12, anchor="sneaker", preserved=("the boot",))
    found = logsnr.erase(pipe, config=wanted).tensors[f"unet.{name}"]

    def text(prompt: str) -> Tensor:
        return encode_prompts(pipe, [prompt], guided=False).values["encoder_hidden_states"][0].double()

    weight, kept = pipe.unet.state_dict()[name].double(), text("the boot")
    after, guides = [], []
    for template in TEMPLATES:
        ends = [len(pipe.tokenizer(template.replace("{}", name)).input_ids) - 1 for name in ("bag", "sneaker")]
        ours, theirs = (text(template.replace("{}", n))[e:] for n, e in zip(("bag", "sneaker"), ends, strict=True))
        count = min(len(ours), len(theirs))
        after.append(ours[:count])
        guides.append(theirs[:count])
    rows = torch.cat([0.5**0.5 * torch.eye(weight.shape[1], dtype=torch.float64), torch.cat(after), kept])
    aims = torch.cat([0.5**0.5 * weight.T, torch.cat(guides) @ weight.T, kept @ weight.T])
    torch.testing.assert_close(found.double(), torch.linalg.lstsq(rows, aims).solution.T, atol=1e-5, rtol=1e-4)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(InputError, match="adapter_rank"):
        EraseConfig(("bag",), method="mace", adversary="none")
    with pytest.raises(UnsupportedError, match="closed forms"):
        logsnr.erase(tiny_sd3(), config=config("bag"))
    with pytest.raises(InputError, match="does not project text"):
        logsnr.erase(tiny_sd(), config=config("bag", modules=("selfattn",)))
