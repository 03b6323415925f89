"""Latents are encoded once, cached whole, and scaled by what was measured."""

import pytest
import torch

from logsnr.core.artifact import save_tensors
from logsnr.core.errors import BrokenError
from logsnr.data.labelled import Labelled
from logsnr.data.latents import encode_latents


@pytest.fixture
def data():
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 1, 8, 8), generator=draws, dtype=torch.uint8)
    return Labelled(images, torch.arange(23) % 5, tuple("abcde"))


class Encoder:
    """Pools images to 2x2 and stretches them; counts its calls."""

    def __init__(self):
        self.batches = []

    def __call__(self, images):
        self.batches.append(len(images))
        return 7 * torch.nn.functional.avg_pool2d(images, 4) + 0.5


def expected(data):
    return 7 * torch.nn.functional.avg_pool2d(data.images / 127.5 - 1, 4) + 0.5


def test_latents_are_scaled_to_the_measured_deviation(data):
    found = encode_latents(data, Encoder())
    raw = expected(data).double()
    assert found.std == pytest.approx(float(raw.std()), rel=1e-6)
    assert found.mean == pytest.approx(float(raw.mean()), rel=1e-6)
    assert torch.allclose(found.latents * found.std, raw.float(), atol=1e-5)
    assert float(found.latents.double().std()) == pytest.approx(1, rel=1e-5)
    assert torch.equal(found.labels, data.labels)
    assert len(found) == 23


def test_items_carry_latent_label_and_index(data):
    found = encode_latents(data, Encoder())
    batch = found.take(torch.tensor([4, 2]))
    assert torch.equal(batch["latent"], found.latents[[4, 2]])
    assert batch["label"].tolist() == [4, 2]
    assert batch["index"].tolist() == [4, 2]


def test_encoding_goes_batch_by_batch_without_gradients(data):
    encoder = Encoder()
    weight = torch.ones(1, requires_grad=True)
    found = encode_latents(data, lambda images: encoder(images) * weight, batch_size=10)
    assert encoder.batches == [10, 10, 3]
    assert not found.latents.requires_grad
    assert torch.equal(found.latents, encode_latents(data, Encoder(), batch_size=23).latents)


def test_a_cache_saves_the_encoder(data, tmp_path):
    cache = tmp_path / "deep" / "latents.safetensors"
    first = encode_latents(data, Encoder(), cache=cache)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    encoder = Encoder()
    again = encode_latents(data, encoder, cache=cache)
    assert encoder.batches == []
    assert torch.equal(first.latents, again.latents)
    assert (first.mean, first.std) == (again.mean, again.std)


@pytest.mark.parametrize("tensors", [{"latents": torch.zeros(22, 1, 2, 2)}, {"other": torch.zeros(23, 1, 2, 2)}])
def test_a_cache_of_something_else_is_refused(data, tmp_path, tensors):
    cache = tmp_path / "latents.safetensors"
    save_tensors(cache, tensors)
    with pytest.raises(BrokenError, match=r"latents\.safetensors.*23 images: remove it"):
        encode_latents(data, Encoder(), cache=cache)


def test_a_truncated_cache_is_refused(data, tmp_path):
    cache = tmp_path / "latents.safetensors"
    encode_latents(data, Encoder(), cache=cache)
    cache.write_bytes(cache.read_bytes()[:-5])
    with pytest.raises(BrokenError, match=r"latents\.safetensors"):
        encode_latents(data, Encoder(), cache=cache)


def test_a_failing_encoder_leaves_no_cache(data, tmp_path):
    def encode(images):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        encode_latents(data, encode, cache=tmp_path / "latents.safetensors")
    assert list(tmp_path.iterdir()) == []
