"""benchmarks/continual.py: headlines are paired by seed, exemplars weigh what the generator's state does."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from logsnr.core.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("continual")
    monkeypatch.setattr(script, "KEPT", tmp_path)
    monkeypatch.setattr(importlib.import_module("continual_report"), "KEPT", tmp_path)
    return script


def kept(bench: Any, name: str, seed: int, accuracy: float, forgetting: float) -> None:
    sizes = {"prototypes": 640, "projection": 360, "generator": 9000}
    experiences = [{"bytes": sizes, "key_value_drift": 1e-7 * seed, "seconds": {"replay": 90.0, "generator": 30.0}}]
    values: dict[str, Any] = {"final_accuracy": accuracy, "forgetting_max": forgetting, "experiences": experiences}
    values["task_il"] = {"final_accuracy": 0.99}
    if name == "gppdm, gradient":
        experiences[0]["key_value_drift"] = 0.5
    found = {"tier": "digits", "strategy": name, "seed": seed, **values}
    bench.place_of("digits", name, seed).write_text(json.dumps(found))


def test_exemplars_weigh_what_ours_does(bench: Any) -> None:
    with pytest.raises(InputError, match="run that first"):
        bench.config_of("digits", "er-state", 1, {})
    kept(bench, "gppdm", 1, 0.9, 0.1)
    assert bench.config_of("digits", "er-state", 1, {}).exemplar_bytes == 1000
    assert bench.config_of("digits", "er-total", 1, {}).exemplar_bytes == 10_000
    kept(bench, "gppdm-plus", 2, 0.9, 0.1)
    assert bench.config_of("digits", "er-state", 2, {}).exemplar_bytes == 1000
    assert bench.config_of("digits", "gppdm", 7, {"sampling_steps": 5}).sampling_steps == 5


def test_strategies_share_all_but_what_is_told(bench: Any) -> None:
    ours, plain = (vars(bench.config_of("mnist5k", name, 1, {})) for name in ("gppdm-plus", "replay"))
    differ = {name for name, value in ours.items() if value != plain[name]}
    told = {"guidance_scale", "classifier_noise", "soft_labels", "images_per_class"}
    assert differ == told | {"prototypes", "projection"}
    assert ours["images_per_class"] == 4 * plain["images_per_class"] == 400
    beside = vars(bench.config_of("mnist5k", "replay-plus", 1, {}))
    assert {name for name, value in ours.items() if value != beside[name]} == {"prototypes", "projection"}


def test_headlines_are_paired_by_seed(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: dict[str, Any] = {}
    script = importlib.import_module("continual_report")

    def write(name: str, protocol: dict[str, Any], rows: list[Any], found: list[Any]) -> None:
        written.update(rows=rows, found=found, protocol=protocol)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "continual.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(script, "write_result", write)
    monkeypatch.setattr(script, "RESULTS", tmp_path / "out")
    monkeypatch.setattr(script, "write_table", lambda page, name, table: written.update({name: table}))
    for seed, gain in ((1, 0.03), (2, 0.05), (3, 0.04)):
        kept(bench, "gppdm-plus", seed, 0.6 + 0.1 * seed + gain, 0.2 - gain)
        kept(bench, "replay", seed, 0.6 + 0.1 * seed, 0.2)
        kept(bench, "joint", seed, 0.6 + 0.1 * seed + 2 * gain, 0.0)
    kept(bench, "gppdm, gradient", 1, 0.7, 0.3)
    kept(bench, "gppdm-plus", 4, 0.1, 0.9)
    kept(bench, "gppdm-plus", 100, 0.1, 0.9)
    kept(bench, "gppdm", 3, 0.92, 0.1)
    script.report()
    found = {entry["name"]: entry for entry in written["found"]}
    gain = found["accuracy_gain_over_replay_low"]
    assert gain["value"] == gain["low"] == pytest.approx(0.04 - 4.303 * 0.01 / 3**0.5, abs=1e-4)
    assert not gain["met"]
    assert found["forgetting_gain_over_replay_low"]["met"]
    assert found["joint_gap"]["value"] == pytest.approx(0.04)
    assert found["key_value_drift"]["value"] == pytest.approx(4e-7), "of every reported run, not of tuning"
    assert "accuracy_gain_over_equal_bytes" not in found
    assert len(written["rows"]) == 12
    beside = written["protocol"]["gain_of_prototypes_and_projection"]["digits"]
    assert beside == {"gppdm": pytest.approx([0.02])}, "each beside the same replay"
    titles, *lines = written["continual"]
    told = {line[1]: dict(zip(titles, line, strict=True)) for line in lines}
    assert told["replay"]["accuracy"] == "0.800 ± 0.100"
    assert (told["replay"]["seeds"], told["replay"]["minutes"], told["replay"]["KB carried"]) == ("3", "2", "10")
    assert told["gppdm, gradient"]["accuracy"] == "0.700", "one seed spreads nowhere"


def test_a_repeating_tier_shows_each_class_twice(bench: Any) -> None:
    classes = bench.classes_of("digits-repeating", 1)
    assert len(classes) == 10
    assert sorted(label for each in classes for label in each) == sorted([*range(10)] * 2)
    assert classes[:5] == bench.classes_of("digits", 1) != classes[5:]
