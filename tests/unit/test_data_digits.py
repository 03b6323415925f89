"""The digits that every test can train on."""

import numpy as np
import pytest
import torch
from sklearn import datasets

from logsnr.core.errors import InputError
from logsnr.data.digits import CLASSES, NUM_TEST, load_digits
from logsnr.data.labelled import Labelled


@pytest.fixture(scope="module")
def splits():
    return load_digits("train"), load_digits("test")


def test_the_splits_hold_every_digit_once(splits):
    source = datasets.load_digits()
    found = np.concatenate([split.images.flatten(1).numpy() for split in splits])
    expected = np.round(source.images.reshape(-1, 64) * 255 / 16)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.astype(int).tolist()))
    assert [len(split) for split in splits] == [1797 - NUM_TEST, NUM_TEST] == [1437, 360]


def test_labels_stay_with_their_images(splits):
    source = datasets.load_digits()
    known = {
        tuple(np.round(i.flatten() * 255 / 16).astype(int)): t
        for i, t in zip(source.images, source.target, strict=True)
    }
    for split in splits:
        assert [known[tuple(image)] for image in split.images.flatten(1).tolist()] == split.labels.tolist()


def test_images_are_bytes_of_one_channel(splits):
    train, _ = splits
    assert isinstance(train, Labelled)
    assert train.images.shape == (1437, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.labels.dtype == torch.int64
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    assert len(train.images.unique()) == 17
    assert train.classes == CLASSES
    batch = train.take(torch.tensor([3, 1]))
    assert torch.equal(batch["image"], train.images[[3, 1]] / 127.5 - 1)
    assert torch.equal(batch["label"], train.labels[[3, 1]])


def test_the_split_is_fixed_and_shuffled(splits):
    again = load_digits("train")
    assert torch.equal(again.images, splits[0].images)
    assert torch.equal(again.labels, splits[0].labels)
    assert splits[1].labels[:20].tolist() != datasets.load_digits().target[:20].tolist()
    assert len(splits[1].labels.unique()) == 10


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match="'valid'.*'train' or 'test'"):
        load_digits("valid")
