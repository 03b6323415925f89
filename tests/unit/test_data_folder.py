"""A user's folder of images with captions, in order and in every kind of disorder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from logsnr.core.errors import BrokenError, InputError, LogsnrError, MissingError
from logsnr.data.folder import load_folder

RED, GREEN, BLUE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def save(path, colour, size=(8, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


def describe(folder, *entries):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")


def means(data):
    return data.images.double().mean((2, 3)).round().int().tolist()


def refused(error, words, folder, **options):
    with pytest.raises(error, match=words) as caught:
        load_folder(folder, **{"size": 8, **options})
    assert isinstance(caught.value, LogsnrError)
    assert "\n" not in str(caught.value)


def test_text_files_caption_every_kind_of_image(tmp_path):
    for name, colour in (("c.png", RED), ("a.jpg", GREEN), ("b.JPEG", BLUE), ("sub/d.webp", GREY)):
        save(tmp_path / name, colour, **({"lossless": True} if name.endswith("webp") else {}))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption of {name}\n", encoding="utf-8")
    data = load_folder(tmp_path, size=8)
    assert data.captions == ("caption of a.jpg", "caption of b.JPEG", "caption of c.png", "caption of sub/d.webp")
    assert len(data) == 4
    assert data.images.shape == (4, 3, 8, 8)
    assert data.images.dtype == torch.uint8
    assert torch.tensor(means(data)).sub(torch.tensor([GREEN, BLUE, RED, GREY])).abs().max() <= 3


def test_items_carry_their_index(tmp_path):
    for name, colour in (("a.png", RED), ("b.png", GREEN)):
        save(tmp_path / name, colour)
    describe(tmp_path, {"file_name": "a.png", "text": "red"}, {"file_name": "b.png", "text": "green"})
    batch = load_folder(tmp_path, size=4).take(torch.tensor([1, 0, 1]))
    assert batch["index"].tolist() == [1, 0, 1]
    assert batch["image"][:, :, 0, 0].tolist() == [[-1, 1, -1], [1, -1, -1], [-1, 1, -1]]


def test_metadata_comes_before_text_files(tmp_path):
    for name in ("a.png", "b.png", "sub/c.png"):
        save(tmp_path / name, RED)
        (tmp_path / name).with_suffix(".txt").write_text("from text")
    describe(tmp_path, {"file_name": "./a.png", "text": " étoile "}, {"file_name": "sub/c.png", "text": "", "id": 3})
    assert load_folder(tmp_path, size=4).captions == ("étoile", "from text", "")


def test_blank_lines_and_a_byte_order_mark_are_harmless(tmp_path):
    save(tmp_path / "a.png", RED)
    (tmp_path / "metadata.jsonl").write_text('\ufeff{"file_name": "a.png", "text": "red"}\r\n\n  \n', encoding="utf-8")
    assert load_folder(tmp_path, size=4).captions == ("red",)


def test_hidden_files_are_left_out(tmp_path):
    save(tmp_path / "a.png", RED)
    (tmp_path / "a.txt").write_text("red")
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    save(tmp_path / ".cache" / "b.png", RED)
    assert len(load_folder(tmp_path, size=4)) == 1


@pytest.mark.parametrize(("width", "height"), [(24, 8), (8, 24)])
def test_the_centre_is_kept(tmp_path, width, height):
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(Image.new("RGB", (8, 8), BLUE), ((width - 8) // 2, (height - 8) // 2))
    picture.save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("blue")
    assert means(load_folder(tmp_path, size=8)) == [list(BLUE)]


@pytest.mark.parametrize("size", [2, 8, 20])
def test_images_are_resized(tmp_path, size):
    save(tmp_path / "a.png", GREEN, size=(9, 14))
    (tmp_path / "a.txt").write_text("green")
    data = load_folder(tmp_path, size=size)
    assert data.images.shape == (1, 3, size, size)
    assert means(data) == [list(GREEN)]


def test_one_channel_is_the_luminance(tmp_path):
    save(tmp_path / "a.png", GREEN)
    (tmp_path / "a.txt").write_text("green")
    data = load_folder(tmp_path, size=4, channels=1)
    assert data.images.shape == (1, 1, 4, 4)
    assert means(data) == [[150]]


def test_transparency_becomes_white_and_16_bits_become_8(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 0x6480, np.uint16)).save(tmp_path / "b.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "c.png")
    describe(tmp_path, *({"file_name": f"{name}.png", "text": name} for name in "abc"))
    assert means(load_folder(tmp_path, size=4)) == [[255] * 3, [0x64] * 3, list(GREEN)]


def test_photographs_are_turned_upright(tmp_path):
    picture = Image.new("RGB", (8, 8), RED)
    picture.paste(Image.new("RGB", (8, 4), BLUE), (0, 0))
    orientation = Image.Exif()
    orientation[0x0112] = 3
    picture.save(tmp_path / "a.png", exif=orientation)
    (tmp_path / "a.txt").write_text("upside down")
    image = load_folder(tmp_path, size=8).images[0]
    assert image[:, 0, 0].tolist() == list(RED)
    assert image[:, 7, 0].tolist() == list(BLUE)


def test_no_folder(tmp_path):
    refused(MissingError, "none is no folder", tmp_path / "none")
    (tmp_path / "file").write_text("a")
    refused(MissingError, "file is no folder", tmp_path / "file")


def test_no_images(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    refused(MissingError, "holds no images", tmp_path)


def test_a_missing_caption_is_named(tmp_path):
    save(tmp_path / "a.png", RED)
    (tmp_path / "a.txt").write_text("red")
    save(tmp_path / "sub" / "b.png", RED)
    refused(MissingError, r"sub/b\.png has no caption.*b\.txt", tmp_path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_image_is_named(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / "a.txt").write_text("red")
    refused(BrokenError, r"a\.png cannot be read as an image", tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_truncated_image_is_named(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1000])
    (tmp_path / "a.txt").write_text("noise")
    refused(BrokenError, rf"{name} cannot be read as an image", tmp_path)


def test_a_decompression_bomb_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a.png", RED, size=(32, 32))
    (tmp_path / "a.txt").write_text("red")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(BrokenError, r"a\.png cannot be read as an image", tmp_path)


@pytest.mark.parametrize("line", ["{", "no json", '{"file_name": "a.png", "text": "red"', "NaN nonsense"])
def test_a_line_that_is_no_json_is_numbered(tmp_path, line):
    save(tmp_path / "a.png", RED)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "red"}\n\n' + line + "\n")
    refused(BrokenError, r"metadata\.jsonl line 3 is no JSON", tmp_path)


@pytest.mark.parametrize(
    "entry", [["a.png", "red"], "a.png", 3, {"file_name": "a.png"}, {"file_name": 1, "text": "red"}]
)
def test_a_line_without_both_strings_is_numbered(tmp_path, entry):
    save(tmp_path / "a.png", RED)
    describe(tmp_path, {"file_name": "a.png", "text": "red"}, entry)
    refused(BrokenError, r"metadata\.jsonl line 2 lacks", tmp_path)


@pytest.mark.parametrize("name", ["b.png", "notes.txt", "../a.png", ""])
def test_a_file_of_the_metadata_that_is_missing_is_named(tmp_path, name):
    folder = tmp_path / "data"
    save(folder / "a.png", RED)
    save(tmp_path / "a.png", RED)
    (folder / "notes.txt").write_text("no image")
    describe(folder, {"file_name": "a.png", "text": "red"}, {"file_name": name, "text": "blue"})
    refused(MissingError, rf"line 2 names {name or '.'},", folder)


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_text_that_is_not_utf8_is_named(tmp_path, name):
    save(tmp_path / "a.png", RED)
    (tmp_path / name).write_bytes(b"\xff\xfe\xfa")
    refused(BrokenError, rf"{name} cannot be read as UTF-8", tmp_path)


@pytest.mark.parametrize("options", [{"size": 0}, {"size": -3}, {"channels": 2}, {"channels": 4}])
def test_impossible_sizes_are_refused(tmp_path, options):
    save(tmp_path / "a.png", RED)
    (tmp_path / "a.txt").write_text("red")
    refused(InputError, "cannot be made", tmp_path, **options)
