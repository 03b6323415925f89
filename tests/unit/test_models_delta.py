"""Which parameters an edit may change, and edits that are applied, undone, saved and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines import tiny_flux, tiny_pixart, tiny_sd, tiny_sd3, tiny_sdxl

from logsnr.core.errors import BrokenError, InputError, MissingError, UnsupportedError
from logsnr.models.delta import Delta, DeltaRecord, make_delta
from logsnr.models.fingerprint import fingerprint
from logsnr.models.parameters import select_parameters
from logsnr.models.pipeline import denoiser_of, encode_prompts


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl, tiny_sd3, tiny_pixart, tiny_flux])
def test_named_sets_divide_a_network(make: Any) -> None:
    pipe = make()
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    names = {which: set(select_parameters(network, which)) for which in ("xattn", "xattn-kv", "noxattn", "full")}
    assert names["full"] == {name for name, _ in network.named_parameters()}
    assert names["xattn-kv"] < names["xattn"]
    assert not names["xattn"] & names["noxattn"]
    rest = names["full"] - names["xattn"] - names["noxattn"]
    ends = ("conv_out", "conv_norm_out", "proj_out", "norm_out", "time_", "adaln_single")
    assert rest
    assert all(name.startswith(ends) for name in rest)
    joint = ("add_", "norm_added", "context_embedder", "text_embedder", "single_transformer_blocks")
    text = ("attn2",) if make in (tiny_sd, tiny_sdxl, tiny_pixart) else joint
    assert all(any(part in name for part in text) for name in names["xattn"])


def test_stable_diffusion_3_has_self_attention_of_the_image_alone() -> None:
    transformer = tiny_sd3().transformer
    chosen = set(select_parameters(transformer, "selfattn"))
    assert any(".attn.to_q." in name for name in chosen)
    assert not chosen & set(select_parameters(transformer, "xattn"))


def test_expressions_and_lists_select_too() -> None:
    unet = tiny_sd().unet
    biases = select_parameters(unet, r"^conv_in\.bias$")
    assert list(biases) == ["conv_in.bias"]
    both = select_parameters(unet, ["xattn-kv", r"^conv_in\."])
    assert set(both) == {*select_parameters(unet, "xattn-kv"), "conv_in.weight", "conv_in.bias"}
    assert list(both) == [name for name, _ in unet.named_parameters() if name in both]


@pytest.mark.parametrize(
    ("which", "said"), [("attn9", "xattn-kv"), ("", "matches no"), ("(", "regular"), ([], "no par")]
)
def test_a_selection_that_matches_nothing_is_refused(which: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        select_parameters(tiny_sd().unet, which)


def test_two_models_share_all_but_their_own_weights() -> None:
    pipe = tiny_sd()
    cond = encode_prompts(pipe, ["a dark sneaker"], guided=False).values
    weights = {name: torch.randn_like(p) for name, p in select_parameters(pipe.unet, "xattn").items()}
    level, x = denoiser_of(pipe).schedule.level(0.5), torch.randn(1, 4, 8, 8)
    own, other = denoiser_of(pipe), denoiser_of(pipe, weights=weights)
    with torch.no_grad():
        before, found = own.output(x, level, cond), other.output(x, level, cond)
        for name, value in weights.items():
            pipe.unet.get_parameter(name).copy_(value)
        torch.testing.assert_close(own.output(x, level, cond), found)
    assert not torch.allclose(before, found)


def edited(pipe: Any, *, components: tuple[str, ...] = ("unet",)) -> Delta:
    """A delta of the biases of each component's first layer that has one."""
    base = {name: fingerprint(getattr(pipe, name)) for name in components}
    before = {}
    for component in components:
        name, parameter = next((n, p) for n, p in getattr(pipe, component).named_parameters() if n.endswith("bias"))
        before[component] = {name: parameter.detach().clone()}
        parameter.data += 1
    delta = make_delta(pipe, before, DeltaRecord(base, "eap", ("bag", "a, b"), {"steps": 3}, {"seconds": 1.5}))
    for component, values in before.items():
        for name, value in values.items():
            getattr(pipe, component).get_parameter(name).data.copy_(value)
    return delta


@pytest.mark.parametrize("components", [("unet",), ("text_encoder",), ("unet", "text_encoder")])
def test_a_delta_is_applied_and_undone_bit_by_bit(components: tuple[str, ...], tmp_path: Path) -> None:
    pipe = tiny_sd()
    delta = edited(pipe, components=components)
    delta.save_pretrained(tmp_path / "delta")
    read = Delta.from_pretrained(tmp_path / "delta")
    assert read.record == delta.record
    base = {name: fingerprint(getattr(pipe, name)) for name in components}
    weights = {name: p.clone() for part in components for name, p in getattr(pipe, part).named_parameters()}
    read.apply(pipe)
    assert all(fingerprint(getattr(pipe, name)) != base[name] for name in components)
    with pytest.raises(InputError, match="applied already"):
        read.apply(pipe)
    read.revert(pipe)
    now = {name: p for part in components for name, p in getattr(pipe, part).named_parameters()}
    assert all(torch.equal(value, now[name]) for name, value in weights.items())
    with pytest.raises(InputError, match="not applied"):
        read.revert(pipe)
    read.merge(pipe)
    assert all(fingerprint(getattr(pipe, name)) != base[name] for name in components)


def test_a_wrong_base_is_refused() -> None:
    delta, other, lacking = edited(tiny_sd()), tiny_sd(seed=1), tiny_sd3()
    with pytest.raises(InputError, match="belongs to another unet"):
        delta.apply(other)
    delta.apply(other, force=True)
    with pytest.raises(InputError, match="no unet"):
        delta.apply(lacking, force=True)
    second = edited(tiny_sd())
    pipe = tiny_sd()
    delta.merge(pipe)
    with pytest.raises(InputError, match="came after"):
        second.merge(pipe)


def test_weights_that_are_elsewhere_or_no_numbers_are_refused() -> None:
    delta, pipe = edited(tiny_sd()), tiny_sd()
    pipe.unet.to("meta")
    with pytest.raises(UnsupportedError, match="offloaded"):
        delta.apply(pipe)
    pipe = tiny_sd()
    pipe.unet.hf_quantizer = object()
    with pytest.raises(UnsupportedError, match="quantised"):
        delta.apply(pipe)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        Delta.from_pretrained(tmp_path / "nothing")
    edited(tiny_sd()).save_pretrained(tmp_path / "delta")
    with pytest.raises(InputError, match="exists already"):
        edited(tiny_sd()).save_pretrained(tmp_path / "delta")
    tensors = tmp_path / "delta" / "delta.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-20])
    with pytest.raises(BrokenError, match="safetensors"):
        Delta.from_pretrained(tmp_path / "delta")
    (tmp_path / "delta" / "delta.json").write_text("{}")
    with pytest.raises(BrokenError, match="no record"):
        Delta.from_pretrained(tmp_path / "delta")
