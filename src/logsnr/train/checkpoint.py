"""Checkpoints: safetensors and JSON, renamed into place, the last few kept."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logsnr.core.artifact import load_tensors, save_tensors, staged, write_json
from logsnr.core.config import read_json
from logsnr.core.errors import BrokenError

_METHOD, _OPTIMIZER = "method.", "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """All that an exact resume needs after ``step`` finished steps."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``folder/step-N`` whole or not at all, then remove all but the last ``keep``."""
    target = folder / f"step-{checkpoint.step:08d}"
    tensors = {_METHOD + name: value for name, value in checkpoint.tensors.items()}
    optimizer_tensors, optimizer_values = _split(checkpoint.optimizer)
    tensors |= {_OPTIMIZER + name: value for name, value in optimizer_tensors.items()}
    with staged(target, replace=True) as temporary:
        save_tensors(temporary / "state.safetensors", tensors)
        write_json(
            temporary / "state.json",
            {
                "step": checkpoint.step,
                "values": checkpoint.values,
                "optimizer": optimizer_values,
                "scaler": checkpoint.scaler,
            },
        )
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint.

    Raises:
        BrokenError: it is damaged or incomplete.
    """
    values = read_json(path / "state.json")
    tensors = load_tensors(path / "state.safetensors")
    try:
        return Checkpoint(
            step=values["step"],
            tensors={k.removeprefix(_METHOD): v for k, v in tensors.items() if k.startswith(_METHOD)},
            values=values["values"],
            optimizer=_join({k.removeprefix(_OPTIMIZER): v for k, v in tensors.items()}, values["optimizer"]),
            scaler=values["scaler"],
        )
    except KeyError as error:
        raise BrokenError(
            f"{path} lacks the entry {error}; remove this checkpoint and resume from an older one"
        ) from error


def _split(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state dictionary as named tensors and JSON values."""
    tensors, names = {}, {}
    for index, entries in optimizer["state"].items():
        names[str(index)] = sorted(entries)
        for name, value in entries.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value)
    return tensors, {"entries": names, "param_groups": optimizer["param_groups"]}


def _join(tensors: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Any]:
    state = {int(i): {name: tensors[f"{i}.{name}"] for name in names} for i, names in values["entries"].items()}
    return {"state": state, "param_groups": values["param_groups"]}
