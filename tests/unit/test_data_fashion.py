"""Fashion-MNIST files that are right or wrong in every way, and the captions made for them."""

import gzip
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.data import fashion
from logsnr.data.captions import HELD_OUT_TEMPLATES, TEMPLATES, Captions, pixel_factors
from logsnr.data.fashion import CLASSES, NAMES, find_fashion, load_fashion

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NUM = 10_000


def idx(array, magic=None):
    header = np.array([magic or 0x0800 + array.ndim, *array.shape], dtype=">i4")
    return header.tobytes() + array.tobytes()


@pytest.fixture(scope="module")
def pixels():
    values = np.zeros((NUM, 28, 28), np.uint8)
    values[:, 3, 5] = np.arange(NUM) % 256
    values[:, 0, 27] = 255
    return values


@pytest.fixture(scope="module")
def original(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("fashion")
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(pixels), 1))
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(idx((np.arange(NUM) % 10).astype(np.uint8))))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "data"))


def test_images_are_padded_with_black_to_32(original, pixels):
    data = load_fashion("test", root=original)
    assert data.images.shape == (NUM, 1, 32, 32)
    assert data.images.dtype == torch.uint8
    assert torch.equal(data.images[:, 0, 2:30, 2:30], torch.from_numpy(pixels))
    assert int(data.images.sum()) == int(pixels.sum(dtype=np.int64))
    assert data.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.classes == CLASSES
    assert len(data) == NUM


def test_items_are_floats_from_minus_one_to_one(original):
    batch = load_fashion("test", root=original).take(torch.tensor([255, 0]))
    assert batch["label"].tolist() == [5, 0]
    assert batch["image"].shape == (2, 1, 32, 32)
    assert batch["image"][:, 0, 5, 7].tolist() == [1.0, -1.0]
    assert batch["image"].min() == -1


def test_plain_files_are_read_like_gzipped_ones(folder):
    expected = load_fashion("test", root=folder)
    for path in list(folder.iterdir()):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    found = load_fashion("test", root=folder)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("inside", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_the_environment_names_the_folder(original, tmp_path, monkeypatch, inside):
    shutil.copytree(original, tmp_path / inside, dirs_exist_ok=True)
    monkeypatch.setattr(fashion, "_DEBIAN", tmp_path / "none")
    with pytest.raises(MissingError):
        find_fashion()
    monkeypatch.setenv("LOGSNR_DATA", str(tmp_path))
    assert find_fashion() == tmp_path / inside
    assert len(load_fashion("test")) == NUM


def test_the_argument_comes_before_the_environment(original, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGSNR_DATA", str(original))
    with pytest.raises(MissingError):
        find_fashion(tmp_path)


def test_a_missing_folder_says_what_to_install(tmp_path):
    with pytest.raises(MissingError, match="dataset-fashion-mnist.*LOGSNR_DATA") as caught:
        load_fashion("test", root=tmp_path / "none")
    assert "\n" not in str(caught.value)


def test_an_unknown_split_is_refused(original):
    with pytest.raises(InputError, match="'valid'"):
        load_fashion("valid", root=original)


def test_missing_files_are_named(folder):
    with pytest.raises(MissingError, match="train-images-idx3-ubyte"):
        load_fashion("train", root=folder)
    (folder / f"{IMAGES}.gz").unlink()
    with pytest.raises(MissingError, match=IMAGES):
        load_fashion("test", root=folder)


def flipped(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 0xFF]) + raw[middle + 1 :]


def regzipped(change):
    return lambda raw: gzip.compress(change(gzip.decompress(raw)), 1)


DAMAGE = {
    "empty": lambda raw: b"",
    "cut in the header": lambda raw: raw[:6],
    "cut in the middle": lambda raw: raw[: len(raw) // 2],
    "cut in the checksum": lambda raw: raw[:-4],
    "a flipped byte": flipped,
    "no gzip": lambda raw: b"<html>not found</html>",
    "wrong magic": regzipped(lambda plain: b"\0\0\x0d" + plain[3:]),
    "one byte short": regzipped(lambda plain: plain[:-1]),
    "one byte long": regzipped(lambda plain: plain + b"\0"),
    "another count": regzipped(lambda plain: plain[:4] + (9_999).to_bytes(4, "big") + plain[8:]),
}


@pytest.mark.parametrize("name", [IMAGES, LABELS])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_named(folder, name, damage):
    path = folder / f"{name}.gz"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(BrokenError, match=name) as caught:
        load_fashion("test", root=folder)
    assert "\n" not in str(caught.value)


def test_another_shape_is_refused(folder):
    (folder / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(np.zeros((NUM, 14, 56), np.uint8)), 1))
    with pytest.raises(BrokenError, match="10000x28x28"):
        load_fashion("test", root=folder)


def test_labels_above_nine_are_refused(folder):
    (folder / f"{LABELS}.gz").write_bytes(gzip.compress(idx(np.full(NUM, 10, np.uint8))))
    with pytest.raises(BrokenError, match="go up to 10"):
        load_fashion("test", root=folder)


def test_each_factor_takes_a_third_of_each_class():
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    reach = torch.randint(4, 30, (900, 1, 1, 1), generator=draws)
    rows = torch.arange(32).reshape(1, 1, 32, 1)
    images = (
        torch.randint(40, 256, (900, 1, 32, 32), generator=draws) * (rows < reach) * (labels + 1).view(-1, 1, 1, 1) / 3
    )
    factors = pixel_factors(images.to(torch.uint8), labels)
    for label, column in itertools.product(range(3), range(2)):
        shares = [(factors[labels == label, column] == value).double().mean() for value in (-1, 0, 1)]
        assert sum(shares) == pytest.approx(1)
        assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


def test_the_installed_data_is_whole_and_its_factors_are_balanced():
    train, test = load_fashion("train"), load_fashion("test")
    assert [data.labels.bincount().tolist() for data in (train, test)] == [[6_000] * 10, [1_000] * 10]
    assert float(train.images[:, :, 2:30, 2:30].double().mean()) == pytest.approx(72.94, abs=0.01)
    factors = pixel_factors(test.images, test.labels)
    for value in (-1, 1):
        assert (factors == value).double().mean(0).tolist() == pytest.approx([1 / 3, 1 / 3], abs=0.02)


def test_factors_follow_the_pixels():
    images = torch.zeros(9, 1, 32, 32, dtype=torch.uint8)
    for place in range(9):
        images[place, 0, : 2 + place] = 250 - 20 * place
    factors = pixel_factors(images, torch.zeros(9, dtype=torch.long))
    assert factors[:, 0].tolist() == [1, 1, 1, 0, 0, 0, -1, -1, -1]
    assert factors[:, 1].tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1]


def test_factors_of_black_images_are_ordinary():
    assert pixel_factors(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4)).tolist() == [[0, 0]] * 4


def test_one_black_image_does_not_hide_the_factors_of_its_class():
    images = torch.zeros(7, 1, 8, 8, dtype=torch.uint8)
    for place in range(1, 7):
        images[place] = 40 * place
    factors = pixel_factors(images, torch.zeros(7))
    assert factors[:, 0].tolist() == [-1, -1, 0, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def captions():
    return Captions(NAMES)


def every_caption(captions):
    """Captions of every class, name, template and pair of factors."""
    names, templates = len(captions.names[0]), len(captions.templates)
    for label, name, template in itertools.product(range(len(captions.names)), range(names), range(templates)):
        for factors in itertools.product((-1, 0, 1), repeat=2):
            draws = (0.99, (name + 0.5) / names, (template + 0.5) / templates, 0.0)
            yield label, factors, captions.caption(label, factors, draws)


def test_one_caption_in_ten_is_empty(captions):
    draws = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)).tolist()
    texts = [captions.caption(i % 10, (1, -1), tuple(draw)) for i, draw in enumerate(draws)]
    assert texts.count("") / len(texts) == pytest.approx(0.1, abs=0.01)
    with_factors = sum("bright" in text for text in texts) / sum(map(bool, texts))
    assert with_factors == pytest.approx(captions.with_factors, abs=0.02)


def test_every_name_and_template_is_reachable(captions):
    texts = {(label, text) for label, factors, text in every_caption(captions) if factors == (0, 0)}
    for label, names in enumerate(captions.names):
        assert len(names) >= 3
        assert {
            name for name in names if any(name in text.split(": ")[-1] for own, text in texts if own == label)
        } == set(names)
    assert len({text for label, text in texts if label == 0}) == len(TEMPLATES) * 3
    assert len(texts) == 10 * 3 * len(TEMPLATES)


def test_names_belong_to_one_class():
    names = [name for synonyms in NAMES for name in synonyms]
    assert len(set(names)) == len(names) == 30


def test_factor_words_stand_for_the_factors(captions):
    for _, (brightness, size), text in every_caption(captions):
        assert ("bright" in text.split(), "dark" in text.split()) == (brightness > 0, brightness < 0)
        assert ("large" in text.split(), "small" in text.split()) == (size > 0, size < 0)


def test_a_style_is_refused_where_there_is_none(captions):
    assert captions.styles == ()
    with pytest.raises(InputError, match="no style 1"):
        captions.prompt(0, style=1)


def test_the_article_agrees(captions):
    texts = [text for _, _, text in every_caption(captions)]
    texts += [
        captions.prompt(label, i, held_out=held) for label in range(10) for i in range(15) for held in (True, False)
    ]
    articles = [match for text in texts for match in re.findall(r"\b(an?) (\w)", text)]
    assert {article for article, _ in articles} == {"a", "an"}
    assert all((article == "an") == (letter in "aeiou") for article, letter in articles)
    assert captions.caption(9, (0, 0), (0.99, 0.0, 0.0, 0.99)) == "a photo of an ankle boot"
    assert captions.caption(9, (1, 0), (0.99, 0.0, 0.0, 0.0)) == "a photo of a bright ankle boot"


def test_held_out_templates_are_new_sentences_of_trained_words(captions):
    assert len(TEMPLATES) == 15
    assert len(HELD_OUT_TEMPLATES) == 3
    assert not set(TEMPLATES) & set(HELD_OUT_TEMPLATES)
    trained = {text for _, _, text in every_caption(captions)}
    held_out = {captions.prompt(label, i, held_out=True) for label in range(10) for i in range(3)}
    assert len(held_out) == 30
    assert not trained & held_out
    assert words(held_out) <= words(trained)


def test_the_tokenizer_is_shown_every_word(captions):
    trained = {text for _, _, text in every_caption(captions)}
    assert words(trained) <= words(captions.all_sentences())


def words(texts):
    return {word for text in texts for word in re.findall(r"[a-z-]+", text)}


def test_prompts_use_the_formal_name_and_wrap_around(captions):
    assert captions.prompt(7) == "a photo of a sneaker"
    assert captions.prompt(7, 15) == captions.prompt(7)
    assert (
        captions.prompt(7, 3, held_out=True) == captions.prompt(7, 0, held_out=True) == "a studio photo of the sneaker"
    )
