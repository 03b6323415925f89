"""The hiding benchmark: what its arms change, and what a line of progress says."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import hiding

from logsnr.hiding.config import hide_preset


def test_every_arm_changes_one_thing() -> None:
    plain = hiding.config_of("balanced", ("bag",), 3)
    assert plain.run.seed == 3
    terms = [f"no {term.replace('_', ' ')}" for term in hiding.TERMS]
    found = [hiding.config_of(arm, ("bag",), 3) for arm in (*hiding.ARMS, *hiding.PRESETS, *terms)]
    assert len({repr(config) for config in found}) == len(found)
    assert hiding.config_of("no keep with key", ("bag",), 3).weights.keep_with_key == 0
    assert hiding.config_of("no keep", ("bag",), 3).weights.keep == 0
    assert hiding.config_of("paper", ("bag",), 0).run.steps == hide_preset("paper", "bag").run.steps
    assert not {*hiding.TUNED} & {*hiding.CELLS}, "what is tuned on is not reported"


def test_a_line_has_means_and_the_worst_wrong_key() -> None:
    names = ("hidden", "recovered", "mse_ratio", "preserved", "preserved_mse_ratio", "preserved_with_key")
    figures = {
        target: {**dict.fromkeys(names, value), "wrong_key": {"zero": {"share": value / 10}, "half": {"share": 0.06}}}
        for target, value in (("a", 1.0), ("b", 0.5))
    }
    line = hiding.shown({"figures": figures, "hide_seconds": 7})
    assert line["recovered"] == 0.75
    assert line["worst_wrong_key"] == (0.1, "zero")
