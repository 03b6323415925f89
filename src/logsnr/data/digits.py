"""scikit-learn's handwritten digits: 1,797 real images of 8x8 that come inside the package.

Source: Alpaydin and Kaynak 1998 (UCI optical recognition of handwritten digits, test part), CC BY 4.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from logsnr.core.errors import InputError
from logsnr.core.random import generator
from logsnr.data.labelled import Labelled

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_TEST = 360
_SPLITS = ("train", "test")


def load_digits(split: str = "train") -> Labelled:
    """The digits as bytes (n, 1, 8, 8), their 17 grey values spread over 0 to 255; "train" is 1,437, "test" 360.

    The split is one fixed shuffle: the same images in the same order everywhere.

    Raises:
        InputError: unknown split.
    """
    if split not in _SPLITS:
        raise InputError(f"digits has no split {split!r}: use 'train' or 'test'")
    from sklearn import datasets  # a slow import: only those who ask for digits wait for it

    digits: Any = datasets.load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    order = torch.randperm(len(images), generator=generator(0, "digits"))
    chosen = order[:NUM_TEST] if split == "test" else order[NUM_TEST:]
    return Labelled(images[chosen], torch.from_numpy(digits.target).long()[chosen], CLASSES)
