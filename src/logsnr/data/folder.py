"""A folder of images with captions: a text file beside each image, or Hugging Face's ``metadata.jsonl``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from logsnr.core.errors import BrokenError, InputError, MissingError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"
_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Captioned:
    """Images (n, channels, size, size) as bytes, and one caption each; ``take`` gives images as floats in [-1, 1]."""

    images: Tensor
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, indices: Tensor) -> dict[str, Tensor]:
        """``image`` (n, channels, size, size) in [-1, 1] and ``index`` (n,), the place of each caption."""
        return {"image": self.images[indices].float() / 127.5 - 1, "index": indices}


def load_folder(folder: Path, *, size: int, channels: int = 3) -> Captioned:
    """The PNG, JPEG and WEBP files in and below a folder, ordered by name, cropped to their centre and resized.

    The caption of ``NAME.png`` is the ``text`` of its line in ``metadata.jsonl`` at the top of the folder, else the
    content of ``NAME.txt`` beside it. Transparent pixels become white, 16-bit grey is reduced to 8. Hidden files are
    left out.

    Raises:
        InputError: ``size`` below 1, or ``channels`` neither 1 nor 3.
        MissingError: no folder, no images, an image without a caption, or a caption without its image.
        BrokenError: an image, a caption or a line of the metadata cannot be read.
    """
    if size < 1 or channels not in _MODES:
        raise InputError(f"images of {channels} channels and size {size} cannot be made: use 1 or 3 and at least 1")
    if not folder.is_dir():
        raise MissingError(f"{folder} is no folder: name one that holds images with captions")
    names = _image_names(folder)
    if not names:
        raise MissingError(f"{folder} holds no images: put PNG, JPEG or WEBP files there")
    captions = _captions(folder, names)
    images = np.stack([_read_image(folder / name, size, channels) for name in names])
    return Captioned(torch.from_numpy(images), captions)


def _image_names(folder: Path) -> list[str]:
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _captions(folder: Path, names: list[str]) -> tuple[str, ...]:
    """One caption a name, from the metadata first, then from the text file beside the image."""
    known = _read_metadata(folder / METADATA, set(names)) if (folder / METADATA).exists() else {}
    return tuple(known[name] if name in known else _caption_beside(folder / name) for name in names)


def _caption_beside(image: Path) -> str:
    path = image.with_suffix(".txt")
    if not path.exists():
        raise MissingError(f"{image} has no caption: write {path.name} beside it, or a line for it in {METADATA}")
    return _read_text(path).strip()


def _read_metadata(path: Path, names: set[str]) -> dict[str, str]:
    """Captions by file name; each line must name an image that is there."""
    captions: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        name, caption = _entry(line, f"{path} line {number}")
        if name not in names:
            raise MissingError(f"{path} line {number} names {name}, which is no image there: add it or remove the line")
        captions[name] = caption
    return captions


def _entry(line: str, where: str) -> tuple[str, str]:
    try:
        value: Any = json.loads(line)
    except ValueError as error:
        raise BrokenError(f"{where} is no JSON: {error}; repair or remove it") from error
    name, caption = (value.get("file_name"), value.get("text")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(caption, str):
        raise BrokenError(f"{where} lacks the strings file_name and text: write one object with both")
    return Path(name).as_posix(), caption.strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise BrokenError(f"{path} cannot be read as UTF-8 text: {error}; repair or remove it") from error


def _read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """Bytes (channels, size, size) of one image file, upright."""
    try:
        with Image.open(path) as file:
            picture = ImageOps.fit(_flat(ImageOps.exif_transpose(file)), (size, size), Image.Resampling.BICUBIC)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenError(f"{path} cannot be read as an image: {error}; repair or remove it") from error
    array = np.asarray(picture.convert(_MODES[channels]))
    return array[None] if channels == 1 else np.moveaxis(array, -1, 0)


def _flat(picture: Image.Image) -> Image.Image:
    """The picture in 8-bit colour on white; Pillow alone would clip 16-bit grey and show what transparency hides."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")
