"""Shipping a few-step model, and the demo's part about it, with a teacher that was not trained on."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import logsnr
from logsnr.cli import showcase_few
from logsnr.consistency.config import consistency_preset
from logsnr.consistency.teacher import tell_guidance
from logsnr.consistency.train import of_unit_data, scheduler_of
from logsnr.core.artifact import write_json
from logsnr.core.config import to_dict
from logsnr.worlds.load import WORLDS, load, load_world

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("told", [True, False])
def test_what_is_shipped_is_a_world_that_the_demo_shows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: bool
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    ship: Any = importlib.import_module("ship_few")
    monkeypatch.setattr(ship, "KEPT", tmp_path)
    monkeypatch.setattr(ship, "PLACE", tmp_path / "fashion_few")
    pipe, config = logsnr.load("fashion"), consistency_preset("distil")
    pipe.scheduler = scheduler_of(of_unit_data(config, pipe.scheduler.config), pipe.scheduler.config)
    if told:
        tell_guidance(pipe)
    pipe.save_pretrained(tmp_path / "few-distil-3")
    figures = {"frechet_distance": 1.5, "judge_accuracy_second": 0.91, "recall": 0.7}
    rows = [
        {"name": f"{calls} calls", "sampling": {"guidance_scale": 1.25}, "seconds": 1.0, **figures} for calls in (1, 2)
    ]
    write_json(tmp_path / "teacher.json", {"rows": rows})
    write_json(tmp_path / "few-distil-3.json", {"config": to_dict(config), "train_seconds": 5.4, "rows": rows})
    for _ in range(2):  # shipped again it takes the place of what was there
        ship.main(tmp_path / "few-distil-3")
    assert sum(path.stat().st_size for path in (tmp_path / "fashion_few").rglob("*") if path.is_file()) < 12e6
    for name in ("model_index.json", "unet/config.json"):
        assert str(tmp_path) not in (tmp_path / "fashion_few" / name).read_text(), "no path of this machine"
    card = (tmp_path / "fashion_few" / "README.md").read_text()
    assert "| fashion-few | 2 | 1.25 | 1.500 | 0.9100 | 0.700 |" in card
    assert "train --seed 3" in card
    monkeypatch.setitem(WORLDS, "fashion-few", tmp_path / "fashion_few")
    assert json.loads((tmp_path / "fashion_few" / "training.json").read_text())["name"] == "fashion-few"
    assert load_world("fashion-few").card["one_call_frechet_distance"] == 1.5
    few = load("fashion-few")
    assert {value.dtype for value in few.unet.state_dict().values()} == {torch.float32}
    assert bool(few.unet.config.time_cond_proj_dim) == told

    monkeypatch.setattr(showcase_few, "_IMAGES", 10)
    monkeypatch.setattr(showcase_few, "_CALLS", 4)
    part = showcase_few.few_calls(load("fashion"), load_world("fashion"), "fashion-few")
    assert not part.passed, "nobody has trained it"
    called = [value["evaluations"] for value in part.values.values()]
    assert called == [10, 20, 80], "one call a step, whether guidance is told or in the weights"
    assert "4 times the evaluations" in part.section.summary
    assert len(part.section.table) == 4
