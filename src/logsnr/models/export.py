"""A delta in the formats that other programs load: low-rank adapters, whose error is said, and full differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from torch import Tensor

from logsnr.core.artifact import save_tensors, staged, write_json
from logsnr.core.errors import InputError
from logsnr.models.delta import Delta

Format = Literal["peft", "diffusers", "kohya", "comfyui"]
FORMATS: tuple[Format, ...] = ("peft", "diffusers", "kohya", "comfyui")


@dataclass(frozen=True)
class Exported:
    """What was written, and how much of the change is not in it.

    ``error`` is the norm of what is missing over the norm of the change; ``left_out`` names what has no place in the
    format at all.
    """

    path: str
    error: float
    left_out: tuple[str, ...]


def export_delta(delta: Delta, pipe: Any, folder: Path, which: Format, *, rank: int = 16) -> Exported:
    """Write a delta of the unedited pipeline ``pipe`` for other programs, to a folder that does not exist yet.

    ``peft`` is a folder for ``PeftModel.from_pretrained``, ``diffusers`` one for ``load_lora_weights``, ``kohya`` has
    a file with the keys of A1111 and its kin; all three are of this rank and made for a scale of 1. ``comfyui`` has the
    full difference, which ComfyUI's loader of LoRAs adds as it is.

    Raises:
        InputError: an unknown format, a rank below 1, nothing that the format can hold, several components for peft, or
            the errors of ``Delta.apply``.
    """
    if which not in FORMATS or rank < 1:
        raise InputError(f"there is no export {which!r} of rank {rank}: use {', '.join(FORMATS)}, and rank 1 or more")
    changes = delta.differences(pipe)
    pairs = {} if which == "comfyui" else _adapters(changes, rank)
    kept = dict(changes) if which == "comfyui" else _products(pairs)
    if not kept:
        raise InputError("nothing of this delta fits a low-rank adapter, for it changes no matrix: export for comfyui")
    tensors = _full(changes) if which == "comfyui" else _LOW_RANK[which](pairs)
    with staged(folder) as place:
        save_tensors(place / _FILES[which], tensors)
        if which == "peft":
            write_json(place / "adapter_config.json", _peft_config(pairs, rank))
    left_out = tuple(name for name in changes if name not in kept)
    return Exported(str(folder / _FILES[which]), _missing(changes, kept), left_out)


_FILES: Mapping[Format, str] = {
    "peft": "adapter_model.safetensors",
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "lora.safetensors",
    "comfyui": "difference.safetensors",
}


def low_rank(changes: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The nearest matrices of at most this rank; what is no matrix is left out."""
    return _products(_adapters(changes, rank))


def truncated(delta: Delta, pipe: Any, rank: int) -> Delta:
    """The delta that an adapter of this rank amounts to, so that its figures can be measured like those of the whole.

    The errors are those of ``Delta.apply``.
    """
    changes = delta.differences(pipe)
    kept = low_rank(changes, rank)
    return Delta({name: delta.tensors[name] - changes[name] + kept[name] for name in kept}, delta.record)


def _adapters(changes: Mapping[str, Tensor], rank: int) -> dict[str, tuple[Tensor, Tensor]]:
    """(down (rank, in), up (out, rank)) of every changed matrix, by its module; smaller ones are filled with zeros."""
    found = {}
    for name, change in changes.items():
        if change.dim() == 2 and name.endswith(".weight"):
            left, sizes, right = torch.linalg.svd(change.double(), full_matrices=False)
            roots = sizes[:rank].sqrt()
            down, up = torch.zeros(rank, change.shape[1]), torch.zeros(change.shape[0], rank)
            down[: len(roots)], up[:, : len(roots)] = roots[:, None] * right[:rank], left[:, :rank] * roots
            found[name.removesuffix(".weight")] = (down, up)
    return found


def _products(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return {f"{module}.weight": up @ down for module, (down, up) in pairs.items()}


def _missing(changes: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> float:
    whole = sum(float(change.square().sum()) for change in changes.values())
    left = sum(float((change - kept.get(name, 0.0)).square().sum()) for name, change in changes.items())
    return (left / whole) ** 0.5 if whole else 0.0


def _diffusers(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Keys of a diffusers pipeline: component.module.lora_A.weight."""
    tensors = {}
    for module, (down, up) in pairs.items():
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    return tensors


def _kohya(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    return convert_state_dict_to_kohya(_diffusers(pairs))


def _peft(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Keys within the one component that is wrapped."""
    components = {module.partition(".")[0] for module in pairs}
    if len(components) > 1:
        raise InputError(f"a peft folder is for one component, and {', '.join(components)} change: use diffusers")
    return {f"base_model.model.{name.partition('.')[2]}": value for name, value in _diffusers(pairs).items()}


def _peft_config(pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, Any]:
    modules = sorted(module.partition(".")[2] for module in pairs)
    return {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "target_modules": modules}


_LOW_RANK = {"peft": _peft, "diffusers": _diffusers, "kohya": _kohya}
_PREFIXES = {"unet": "lora_unet", "transformer": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}


def _full(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Differences under lora_unet_MODULE.diff, those of biases under .diff_b; of text encoders under lora_te1 and 2."""
    tensors = {}
    for name, change in changes.items():
        component, _, inner = name.partition(".")
        module, _, kind = inner.rpartition(".")
        ending = {"weight": "diff", "bias": "diff_b"}[kind]
        tensors[f"{_PREFIXES[component]}_{module.replace('.', '_')}.{ending}"] = change
    return tensors
