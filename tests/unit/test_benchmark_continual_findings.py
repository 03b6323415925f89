"""benchmarks/continual_findings.py: what it shows can be seen in a few steps, and the page quotes what it wrote."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("continual_findings")


def test_one_token_leaves_keys_no_gradient(script: Any) -> None:
    one, three = script.gradients(1), script.gradients(3)
    assert one["key"] < 1e-8 < 1e-6 < three["key"]
    assert one["value"] > 1e-4


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_only_a_projected_update_keeps_old_outputs_under_adam(script: Any, optimizer: str) -> None:
    found = {apply: script.drift(optimizer, apply, steps=20)["drift"] for apply in ("none", "gradient", "update")}
    assert found["none"] > 1e-3
    assert found["update"] < 1e-5
    assert (found["gradient"] < 1e-5) == (optimizer == "SGD")


def test_a_reassigned_prototype_moves_once(script: Any) -> None:
    moved = {kind: script.moves(kind, steps=15)["moved"] for kind in ("reassigned", "literal", "ours")}
    assert moved == {"reassigned": 1, "literal": 15, "ours": 15}


def test_the_page_quotes_what_was_measured() -> None:
    page = (ROOT / "docs" / "continual-released.md").read_text()
    rows = json.loads((ROOT / "benchmarks" / "results" / "continual_findings.json").read_text())["rows"]
    for row in (row for row in rows if "tokens" in row):
        assert "| {tokens} | {query:.0e} | {key:.0e} | {value:.0e} |".format(**row) in page
    drifts = {(row["optimizer"], row["projects"]): row["drift"] for row in rows if "optimizer" in row}
    for name in {optimizer for optimizer, _ in drifts}:
        cells = " | ".join(f"{drifts[name, apply]:.0e}" for apply in ("none", "gradient", "update"))
        assert f"| {name} | {cells} |" in page
    assert all(row["loss"] < 1e-5 for row in rows if "loss" in row)
    names = {"reassigned": "replaced, as released", "literal": "replaced, gradient kept", "ours": "ours"}
    for row in (row for row in rows if "prototype" in row):
        assert f"| {names[row['prototype']]} | {row['moved']} | {row['size']:.2f} |" in page
