"""Folders of safetensors and JSON that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from logsnr.core.errors import BrokenError, InputError


@contextmanager
def staged(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the name ``folder`` when the block ends well, and vanishes when it fails.

    Raises:
        InputError: the place cannot be written, or is taken by a file or, where ``replace`` is false, by a folder.
    """
    temporary, parents = _beside(folder), list[Path]()
    try:
        with _writing(folder):
            if folder.exists() and not (replace and folder.is_dir()):
                raise InputError(f"{folder} exists already: choose another --out, or remove it first")
            parents = [parent for parent in folder.parents if not parent.exists()]
            temporary.mkdir(parents=True)
        yield temporary
        with _writing(folder):
            _publish(temporary, folder, replace=replace)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            for parent in parents:
                parent.rmdir()


def _publish(temporary: Path, folder: Path, *, replace: bool) -> None:
    """Give the temporary folder its name; a folder that is replaced comes back when that fails."""
    if not (replace and folder.exists()):
        temporary.rename(folder)
        return
    retired = _beside(folder)
    folder.rename(retired)
    try:
        temporary.rename(folder)
    except BaseException:
        retired.rename(folder)
        raise
    shutil.rmtree(retired)


def write_file(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write a file under a temporary name and rename it; a private one is for the eyes of its owner from the start.

    Raises:
        InputError: the place cannot be written.
    """
    with _renamed(path) as temporary:
        temporary.touch(mode=0o600 if private else 0o666)
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, readable by people, under a temporary name and rename it."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Save named tensors as safetensors under a temporary name and rename it; those that share memory are copied first.

    Raises:
        InputError: the place cannot be written.
    """
    with _renamed(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, temporary)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Named tensors of a safetensors file, on the CPU.

    Raises:
        BrokenError: the file is missing, truncated or no safetensors file.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BrokenError(f"{path} cannot be read as safetensors: {error}; restore or remove it") from error


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """A temporary file name beside ``path``; what the block wrote there takes the name when the block ends well."""
    temporary = _beside(path)
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.rename(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be written: {reason}; choose another place, such as another --out") from error


def _beside(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part"
