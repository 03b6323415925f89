"""Exports of a delta: loaded by the programs' own loaders where they are Python, and against the keys they document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pipelines import tiny_sd, tiny_sd3, tiny_sdxl
from safetensors.torch import load_file

from logsnr.core.errors import InputError
from logsnr.models.delta import Delta, DeltaRecord
from logsnr.models.export import FORMATS, export_delta, low_rank, truncated
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import component_of, denoiser_of, encode_prompts, latent_shape, network_of


def edited(pipe: Any, which: str = r"(attn2\.to|add)_[kv].*weight", *, rank: int | None = None) -> Delta:
    """A delta of random changes, of this rank or full."""
    network, component, generator = network_of(pipe), component_of(pipe), torch.Generator().manual_seed(3)
    tensors = {}
    for name, value in select_parameters(network, which).items():
        change = 0.1 * torch.randn(value.shape, generator=generator)
        if rank and value.dim() == 2:
            change = torch.randn(value.shape[0], rank, generator=generator) @ change[:rank]
        tensors[f"{component}.{name}"] = value.detach() + change
    return Delta(tensors, DeltaRecord({component: fingerprint(network)}, "eap", ("bag",)))


def answer(pipe: Any) -> torch.Tensor:
    """What the network says of one sample."""
    denoiser = denoiser_of(pipe)
    cond = encode_prompts(pipe, ["a dark sneaker"], guided=False)
    x = torch.randn(1, *latent_shape(pipe), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return denoiser.output(x, denoiser.schedule.level(0.6), cond.values)


@pytest.mark.parametrize(
    ("make", "which"),
    [
        (tiny_sd, "diffusers"),
        (tiny_sdxl, "diffusers"),
        (tiny_sd3, "diffusers"),
        (tiny_sd, "kohya"),
        (tiny_sdxl, "kohya"),
    ],
)
def test_stock_loaders_give_what_the_delta_gives(make: Any, which: Any, tmp_path: Path) -> None:
    pipe = make()
    delta = edited(pipe, rank=2)
    written = export_delta(delta, pipe, tmp_path / "lora", which, rank=3)
    assert written.error < 1e-5
    assert not written.left_out
    before = answer(pipe)
    delta.apply(pipe)
    expected = answer(pipe)
    delta.revert(pipe)
    pipe.load_lora_weights(tmp_path / "lora", weight_name=Path(written.path).name)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(answer(pipe), expected, atol=1e-5, rtol=1e-5)


def test_peft_loads_its_folder(tmp_path: Path) -> None:
    pipe = tiny_sd()
    delta = edited(pipe, rank=2)
    export_delta(delta, pipe, tmp_path / "peft", "peft", rank=2)
    delta.apply(pipe)
    expected = answer(pipe)
    delta.revert(pipe)
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "peft").merge_and_unload()
    torch.testing.assert_close(answer(pipe), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_cut_off_is_said_and_can_be_measured(rank: int, tmp_path: Path) -> None:
    pipe = tiny_sd()
    delta = edited(pipe, "xattn")
    changes = delta.differences(pipe)
    written = export_delta(delta, pipe, tmp_path / "lora", "diffusers", rank=rank)
    kept = low_rank(changes, rank)
    assert all(int(torch.linalg.matrix_rank(value)) <= rank for value in kept.values())
    assert {name for name in changes if name.endswith("bias")} == set(written.left_out)
    whole = torch.cat([value.flatten() for value in changes.values()])
    left = torch.cat([(value - kept.get(name, torch.zeros_like(value))).flatten() for name, value in changes.items()])
    assert written.error == pytest.approx(float(left.norm() / whole.norm()), rel=1e-4)
    assert 0.1 < written.error < 1
    cut = truncated(delta, pipe, rank)
    torch.testing.assert_close(cut.differences(pipe), kept, atol=1e-6, rtol=1e-5)
    pipe.load_lora_weights(tmp_path / "lora")
    loaded = answer(pipe)
    pipe.unload_lora_weights()
    cut.apply(pipe)
    torch.testing.assert_close(answer(pipe), loaded, atol=1e-5, rtol=1e-5)


def test_the_full_difference_has_the_keys_of_comfyui(tmp_path: Path) -> None:
    pipe = tiny_sd()
    delta = edited(pipe, "xattn")
    written = export_delta(delta, pipe, tmp_path / "full", "comfyui")
    assert (written.error, written.left_out) == (0.0, ())
    tensors, changes = load_file(written.path), delta.differences(pipe)
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
    flat = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert torch.equal(tensors[f"{flat}.diff"], changes[f"unet.{module}.weight"])
    assert torch.equal(tensors[f"{flat}.diff_b"], changes[f"unet.{module}.bias"])
    assert len(tensors) == len(changes)


def test_impossible_exports_are_refused(tmp_path: Path) -> None:
    pipe = tiny_sd()
    biases = edited(pipe, r"attn2\.to_out\.0\.bias$")
    for which in FORMATS[:3]:
        with pytest.raises(InputError, match="changes no matrix"):
            export_delta(biases, pipe, tmp_path / "out", which)
    with pytest.raises(InputError, match="comfyui"):
        export_delta(biases, pipe, tmp_path / "out", "onnx")
    with pytest.raises(InputError, match="rank"):
        export_delta(edited(pipe), pipe, tmp_path / "out", "kohya", rank=0)
    with pytest.raises(InputError, match="another unet"):
        export_delta(edited(pipe), tiny_sd(seed=1), tmp_path / "out", "kohya")
    assert not (tmp_path / "out").exists()
