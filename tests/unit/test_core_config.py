"""Configurations survive JSON, and what does not belong is refused by name."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logsnr.core.config import from_dict, read_json, to_dict
from logsnr.core.errors import BrokenError, InputError, MissingError
from logsnr.worlds.config import RECIPES, Recipe


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: Literal["soft", "hard"] = "soft"


@dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 10
    flag: bool = False
    sizes: tuple[int, ...] = (1, 2)
    out: Path | None = None
    clip: float | None = 1.0
    inner: Inner = field(default_factory=Inner)
    runs: dict[str, Inner] = field(default_factory=dict)


OUTERS = st.builds(
    Outer,
    name=st.text(max_size=5),
    steps=st.integers(),
    flag=st.booleans(),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    out=st.sampled_from([None, Path("a/b"), Path("/c")]),
    clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    inner=st.builds(Inner, st.floats(0, 1), st.sampled_from(["soft", "hard"])),
    runs=st.dictionaries(st.text(max_size=3), st.builds(Inner, st.floats(0, 1)), max_size=2),
)


@given(OUTERS)
def test_a_configuration_survives_json(config):
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_shipped_recipe_survives_json(recipe):
    assert from_dict(Recipe, json.loads(json.dumps(to_dict(recipe)))) == recipe


def test_defaults_fill_in_and_whole_numbers_become_floats():
    config = from_dict(Outer, {"name": "a", "clip": 2, "inner": {"rate": 1}})
    assert config == Outer("a", clip=2.0, inner=Inner(1.0))
    assert isinstance(config.clip, float)
    assert isinstance(config.inner.rate, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "a", "stepz": 1}, "stepz"),
        ({}, "name"),
        ({"name": 3}, "Outer.name"),
        ({"name": "a", "steps": 1.5}, "Outer.steps"),
        ({"name": "a", "steps": "1"}, "Outer.steps"),
        ({"name": "a", "steps": True}, "Outer.steps"),
        ({"name": "a", "steps": None}, "Outer.steps"),
        ({"name": "a", "flag": 1}, "Outer.flag"),
        ({"name": "a", "clip": "x"}, "Outer.clip"),
        ({"name": "a", "clip": True}, "Outer.clip"),
        ({"name": "a", "sizes": 3}, "Outer.sizes"),
        ({"name": "a", "sizes": [1, "b"]}, "Outer.sizes"),
        ({"name": "a", "inner": {"kind": "odd"}}, "Inner.kind"),
        ({"name": "a", "inner": 5}, "Outer.inner"),
        ({"name": "a", "runs": {"x": {"rate": "fast"}}}, "Inner.rate"),
    ],
)
def test_what_does_not_fit_is_named(values, words):
    with pytest.raises(InputError, match=words) as caught:
        from_dict(Outer, values)
    assert "\n" not in str(caught.value)


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null]}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": [1, None]}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": }', b"\xff\xfe\x00"])
def test_broken_json_names_the_file(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(BrokenError, match=r"a\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_missing_json_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none.json", tmp_path / "file" / "none.json"):
        with pytest.raises(MissingError) as caught:
            read_json(path)
        assert str(caught.value) == f"there is no file {path}: check the path, or make that file first"
