"""Fashion-MNIST from its IDX files: real images, class names with synonyms, captions and factors measured from pixels.

Source: Xiao, Rasul and Vollgraf 2017, MIT licence; Debian package dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.data.labelled import Labelled

NAMES = (
    ("t-shirt", "tee", "top"),
    ("trouser", "trousers", "pants"),
    ("pullover", "sweater", "jumper"),
    ("dress", "gown", "frock"),
    ("coat", "jacket", "overcoat"),
    ("sandal", "slipper", "flip-flop"),
    ("shirt", "blouse", "button-up"),
    ("sneaker", "trainer", "running shoe"),
    ("bag", "handbag", "purse"),
    ("ankle boot", "boot", "bootie"),
)
CLASSES = tuple(names[0] for names in NAMES)
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_PREFIX = {"train": "train", "test": "t10k"}
_COUNT = {"train": 60_000, "test": 10_000}


def load_fashion(split: str = "train", *, root: Path | None = None) -> Labelled:
    """Fashion-MNIST padded with black to 32x32, one channel; ``split`` is "train" (60,000) or "test" (10,000).

    Looks in ``root``, else in ``$LOGSNR_DATA``, else where the Debian package and torchvision put the files.

    Raises:
        InputError: unknown split.
        MissingError: no folder holds the files.
        BrokenError: a file is truncated, corrupt or of the wrong size.
    """
    if split not in _PREFIX:
        raise InputError(f"Fashion-MNIST has no split {split!r}: use 'train' or 'test'")
    folder = find_fashion(root)
    images = _read_idx(folder, f"{_PREFIX[split]}-images-idx3-ubyte", (_COUNT[split], 28, 28))
    labels = _read_idx(folder, f"{_PREFIX[split]}-labels-idx1-ubyte", (_COUNT[split],))
    if labels.max() >= len(CLASSES):
        raise BrokenError(f"the labels in {folder} go up to {labels.max()}, not 9; install dataset-fashion-mnist again")
    padded = functional.pad(torch.from_numpy(images)[:, None], (2, 2, 2, 2))
    return Labelled(padded, torch.from_numpy(labels).long(), CLASSES)


def find_fashion(root: Path | None = None) -> Path:
    """The folder of the IDX files.

    Raises:
        MissingError: none of the known places has them.
    """
    places = [root] if root else [*_from_environment(), _DEBIAN]
    for place in places:
        for folder in (place, place / "fashion-mnist", place / "FashionMNIST" / "raw"):
            if any((folder / f"t10k-labels-idx1-ubyte{end}").exists() for end in (".gz", "")):
                return folder
    raise MissingError(
        f"Fashion-MNIST was not found in {', '.join(map(str, places))}: install the Debian package "
        "dataset-fashion-mnist, or set LOGSNR_DATA to a folder with its four IDX files"
    )


def _from_environment() -> list[Path]:
    value = os.environ.get("LOGSNR_DATA")
    return [Path(value)] if value else []


def _read_idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of bytes from an IDX file, plain or gzipped, whose header and length must match ``shape``."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
    if path is None:
        raise MissingError(f"{folder / name}.gz is missing; install dataset-fashion-mnist again")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise BrokenError(f"{path} cannot be read: {error}; install dataset-fashion-mnist again") from error
    header = np.array([0x0800 + len(shape), *shape], dtype=">i4").tobytes()
    if not raw.startswith(header) or len(raw) != len(header) + int(np.prod(shape)):
        size = "x".join(map(str, shape))
        raise BrokenError(f"{path} is truncated or no IDX file of {size} bytes; install dataset-fashion-mnist again")
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape).copy()
