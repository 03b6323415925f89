"""benchmarks/worlds.py on worlds of random weights: headlines from rows, cards, pictures, and the gate."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawings import real
from recipes import FEW_EMOJI, TINY_EMOJI, TINY_FLOW, FewFashion

from logsnr.core.config import read_json
from logsnr.evaluation.config import QualityConfig
from logsnr.solvers.config import SampleConfig
from logsnr.worlds.data import SOURCES
from logsnr.worlds.load import WORLDS
from logsnr.worlds.recipe import train_world

pytestmark = real
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUICK = SampleConfig(steps=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    places = {name: tmp_path_factory.mktemp(name) for name in ("emoji", "fashion-flow")}
    list(train_world(TINY_EMOJI, FEW_EMOJI.training(), places["emoji"]))
    list(train_world(TINY_FLOW, FewFashion().training(), places["fashion-flow"], start_from=WORLDS["fashion"]))
    return places


@pytest.fixture
def worlds(trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with few images and evaluations, the trained worlds as embedded ones, and results in ``tmp_path``."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench, fashion, record, script = (importlib.import_module(n) for n in ("bench", "fashion", "record", "worlds"))
    for source, few in (("emoji", FEW_EMOJI), ("fashion", FewFashion())):
        monkeypatch.setitem(SOURCES, source, few)
    for name, place in trained.items():
        monkeypatch.setitem(WORLDS, name, place / "pipeline")
        monkeypatch.setitem(script.CHOSEN, name, QUICK)
        monkeypatch.setitem(script.SEARCHED, name, [replace(QUICK, rho=0.5)])
    few = QualityConfig(num_images=24)
    changes = dict.fromkeys(("REPORTED", "COMPARED", "PAIRED", "TUNING"), few)
    changes = {**changes, "DEFAULT": QUICK, "FAITHFUL": QUICK, "IMAGES": tmp_path}
    for module in (bench, fashion, record, script):
        for constant, value in {**changes, "RESULTS": tmp_path}.items():
            monkeypatch.setattr(module, constant, value, raising=False)
    yield script
    for name in ("bench", "fashion", "record", "worlds"):
        sys.modules.pop(name, None)


def test_every_headline_comes_from_a_row_and_every_world_gets_card_and_pictures(
    worlds: Any, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for only in ("fashion-flow", "emoji"):  # one after another: the second leaves what the first found
        monkeypatch.setattr(sys, "argv", ["worlds.py", "--only", only])
        assert worlds.run() == 0
    result = read_json(tmp_path / "emoji.json")
    assert set(result["protocol"]["data"]) == {"emoji", "fashion-flow"}
    rows = {(row["world"], row["name"]): row for row in result["rows"]}
    found = {entry["name"]: entry for entry in result["headline"]}
    chosen = rows["emoji", "chosen"]
    assert {name: entry["value"] for name, entry in found.items()} == {
        "concept_top1": chosen["concept_top1_second"],
        "concept_top5": chosen["concept_top5_second"],
        "style_accuracy": chosen["style_accuracy_second"],
        "heldout_pair_top1": chosen["held_out_pairs"]["concept_top1_second"],
        "flow_judge_accuracy": rows["fashion-flow", "default"]["judge_accuracy_second"],
        "flow_frechet_ratio": rows["fashion-flow", "faithful"]["frechet_distance"]
        / rows["fashion-flow", "faithful, fashion"]["frechet_distance"],
    }
    assert [entry["goal"] for entry in result["headline"]] == [0.93, 1.5, 0.7, 0.9, 0.9, 0.0]
    assert found["style_accuracy"]["low"] <= found["style_accuracy"]["value"] <= found["style_accuracy"]["high"]
    assert chosen["sampling"]["steps"] == 2
    assert len(json.dumps(rows["emoji", "default"])) < 5000
    for name, place in trained.items():
        card, figures = (place / "pipeline" / "README.md").read_text(), read_json(place / "pipeline" / "card.json")
        assert {"default_accuracy", "real_test_accuracy"} <= figures.keys()
        assert "![Contact sheet](sheet.png)" in card
        assert (tmp_path / f"{name}-sheet.png").read_bytes() == (place / "pipeline" / "sheet.png").read_bytes()
    assert (tmp_path / "emoji-held-out.png").is_file()


def test_fashion_is_measured_on_the_same_bench(worlds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(WORLDS["fashion"], tmp_path / "fashion")
    monkeypatch.setitem(WORLDS, "fashion", tmp_path / "fashion")
    monkeypatch.setattr(worlds.fashion, "CURVE", worlds.REPORTED)
    monkeypatch.setattr(worlds.fashion, "GUIDANCE", (1.0, 2.0))
    worlds.fashion.main()
    result, figures = read_json(tmp_path / "fashion.json"), read_json(tmp_path / "fashion" / "card.json")
    assert {entry["name"]: entry["value"] for entry in result["headline"]}.items() <= figures.items()
    names = [row["name"] for row in result["rows"]]
    assert names == ["real test images", "reconstructions", "faithful", "default", "guidance 1.0", "guidance 2.0"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "fashion.png", "fashion-classes.png", "fashion-guidance.png"
    }  # fmt: skip


def test_tuning_writes_nothing(
    worlds: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["worlds.py", "--tune"])
    monkeypatch.delitem(WORLDS, "fashion-flow")
    assert worlds.run() == 0
    out = capsys.readouterr().out
    assert "guidance 2.0, rho 0.5" in out
    assert "fashion-flow has no weights here" in out
    assert list(tmp_path.iterdir()) == []


def test_the_gate_measures_a_folder_without_a_denoiser(
    worlds: Any, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["worlds.py", "--reconstructions", str(trained["emoji"])])
    assert worlds.run() == 1
    assert "reconstruction_top1: 0.0" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"has no judge: say logsnr train emoji --stages judge,judge_second,auto"):
        worlds.reconstructed(trained["emoji"] / "denoiser")
