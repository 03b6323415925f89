"""The demo's continual part: what is kept of a run, its pictures, and the projection beside no projection."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import continual
import ship_continual

from logsnr.cli.showcase_continual import drift, kept_on
from logsnr.continual.config import strategy
from logsnr.continual.learner import Learner
from logsnr.core.artifact import write_json
from logsnr.core.config import to_dict
from logsnr.core.steps import finish
from logsnr.data.digits import load_digits
from logsnr.data.stream import make_stream
from logsnr.worlds.load import load, load_world


def test_a_run_is_kept_and_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(continual, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(continual, "WORK", tmp_path)
    quick = {"generator_steps": 2, "classifier_epochs": 1, "images_per_class": 2, "sampling_steps": 2, "seed": 1}
    config = strategy("gppdm", **quick)
    stream = make_stream(load_digits("train"), load_digits("test"), [(3, 7), (1, 4)])
    found = finish(Learner(stream, config, tmp_path / "x").run())
    write_json(
        tmp_path / "kept" / "x.json",
        {"tier": "digits", "strategy": "gppdm", "seed": 1, "config": to_dict(config), **found},
    )
    ship_continual.ship("x", tmp_path / "shipped")
    picture = Image.open(tmp_path / "shipped" / "replays.png")
    assert picture.size == (8 * 2 * 4, 8 * 3)
    later = picture.crop((8 * 2 * 2, 8, picture.width, 16))
    assert later.getextrema() == (255, 255), "what is not learned yet is blank"
    assert picture.crop((0, 8, 16, 16)).getextrema() != (255, 255)
    part = kept_on(load("fashion"), load_world("fashion"), tmp_path / "shipped")
    assert part.passed
    assert part.values["final_accuracy"] == found["final_accuracy"]
    assert len(part.section.table) == 3


def test_the_projection_keeps_what_the_same_steps_move_without_it() -> None:
    pipe, world = load("fashion"), load_world("fashion")
    assert drift(pipe, world, True) < 1e-5
    assert drift(pipe, world, False) > 1e-2
