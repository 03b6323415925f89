"""The load benchmark's parts at a tiny size: the ways to break in are refused each by its own answer."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_a_short_run_has_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serve

    monkeypatch.setattr(serve, "STEPS", 3)
    serve.hidden_model(tmp_path)
    rows, token, single = asyncio.run(serve.headlines_of(tmp_path, tmp_path / "s.db", 0.05, 26))
    equal, loaded, tried = rows
    assert equal["byte_equal_fraction"] == 1
    assert loaded["statuses"].keys() == {"200"}
    assert loaded["images_per_second"] > 0
    assert 0.5 < loaded["memory_growth_ratio"] < 1.5
    assert tried["unauthorised_keyed_images"] == 0
    answers = {name: {int(status) for status in found} for name, found in tried["statuses"].items()}
    open_ones = {"all that is granted, without a token", "all that is granted, to another"}
    assert {name for name, found in answers.items() if found == {200}} == open_ones
    assert answers["another grant"] == answers["an administrator"] == answers["an auditor"] == {403}
    assert all(found == {401} for name, found in answers.items() if name in ("no token", "expired", "revoked"))
    assert len(single) == 16
    assert token not in str(rows)
    sys.modules.pop("serve")
