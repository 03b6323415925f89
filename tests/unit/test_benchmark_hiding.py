"""The hiding benchmark: what its arms change, and what a line of progress says."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import hiding
import hiding_attacks
import hiding_control
import hiding_keys
import hiding_measures
import hiding_panels
import hiding_report
import hiding_rivals

from logsnr.cli.hidden import Measured
from logsnr.data.fashion import CLASSES
from logsnr.data.labelled import Labelled
from logsnr.evaluation.erasure import class_labels
from logsnr.hiding.config import hide_preset
from logsnr.models.prompted import Prompt
from logsnr.solvers.config import SampleConfig
from logsnr.worlds.load import load, load_world


def test_every_arm_changes_one_thing() -> None:
    plain = hiding.config_of("balanced", ("bag",), 3)
    assert plain.run.seed == 3
    terms = [f"no {term.replace('_', ' ')}" for term in hiding.TERMS]
    found = [hiding.config_of(arm, ("bag",), 3) for arm in (*hiding.ARMS, *hiding.PRESETS, *terms)]
    assert len({repr(config) for config in found}) == len(found)
    assert hiding.config_of("no keep with key", ("bag",), 3).weights.keep_with_key == 0
    assert hiding.config_of("no keep", ("bag",), 3).weights.keep == 0
    assert hiding.config_of("paper", ("bag",), 0).run.steps == hide_preset("paper", "bag").run.steps
    for world, cells in hiding_panels.CELLS.items():
        assert not {*hiding_panels.TUNED[world].values()} & {*cells.values()}, "what is tuned on is not reported"


def test_of_emoji_a_concept_its_neighbours_and_others_are_asked_for() -> None:
    world, pipe = load_world("emoji"), load("emoji")
    (gone,) = class_labels(["a grinning face"], world.captions.names)
    prompts, labels = hiding_panels.asked(world, pipe, gone, 6, held_out=True)
    assert (labels[:6] == gone).all()
    assert len(set(prompts[:6])) == 6, "every style, in two templates"
    kept = labels[6:].unique().tolist()
    assert len(kept) == 120
    assert gone not in kept
    names = [world.captions.names[label][0] for label in kept]
    assert sum("face" in name for name in names) > 10, "its look-alikes are among them"
    assert hiding_panels.asked(load_world("fashion"), pipe, 0, 6, held_out=True) is None
    measured = Measured(world, [gone], hiding.TEST, hiding.SAMPLING, prompts=(prompts, labels))
    assert measured._asked() == (prompts, labels)


def test_a_line_has_means_and_the_worst_wrong_key() -> None:
    names = ("hidden", "recovered", "mse_ratio", "preserved", "preserved_mse_ratio", "preserved_with_key")
    figures = {
        target: {**dict.fromkeys(names, value), "wrong_key": {"zero": {"share": value / 10}, "half": {"share": 0.06}}}
        for target, value in (("a", 1.0), ("b", 0.5))
    }
    line = hiding.shown({"figures": figures, "hide_seconds": 7})
    assert line["recovered"] == 0.75
    assert line["worst_wrong_key"] == (0.1, "zero")


def part(*targets: str, arm: str = "balanced", recovered: float = 0.9) -> dict[str, Any]:
    """What a run keeps, of made-up figures."""
    seen = {"share": 0.02, "hits": 10, "images": 500, "upper95": 0.034}
    names = ("mse_ratio", "label_agreement", "preserved", "preserved_worst", "preserved_mse_ratio")
    found = {
        **dict.fromkeys((*names, "preserved_with_key", "hidden_quality"), 0.5),
        "hidden": 0.97,
        "recovered": recovered,
        "wrong_key": {"zero": {"share": 0.01}, "half": {"share": 0.06}, "blended": {"share": 0.13}},
        "plain": seen,
        "near": dict.fromkeys(("0.1", "0.3", "1.0"), seen),
    }
    figures = {t: {**found, "unlock": {o: {"share": 0.1} for o in targets if o != t}} for t in targets}
    told = {"hide_seconds": 1.0, "evaluation_equivalents": 2, "seed": 0}
    return {"world": "fashion", "arm": arm, "targets": list(targets), **told, "figures": figures}


def test_headlines_are_means_over_runs_and_the_wrong_key_is_the_worst() -> None:
    one, three = hiding_report.row_of(part("bag")), hiding_report.row_of(part("bag", "coat", recovered=0.7))
    assert one["wrong_key_excess"] == pytest.approx(0.06 - 0.03)
    assert one["worst_wrong_key"] == {"bag": "half"}
    assert one["blended_excess"] == pytest.approx(0.13 - 0.03), "half of the right key is no wrong one"
    assert "cross_unlock_off" not in one, "one key crosses nothing"
    found = {entry["name"]: entry for entry in hiding_report.headlines([one, three])}
    assert found.keys() == hiding_report.GOALS.keys()
    assert found["recovered"]["value"] == pytest.approx(0.8)
    assert found["recovered"]["low"] == pytest.approx(0.7), "the interval is of two runs"
    assert found["hidden"]["value"] == pytest.approx(0.98)
    assert found["cross_unlock_diagonal"]["value"] == pytest.approx(0.7)
    assert not found["cross_unlock_off"]["met"]


def test_near_keys_are_as_far_as_they_say() -> None:
    draws = torch.Generator().manual_seed(0)
    right = Prompt(3 * torch.randn(8, 64, generator=draws), 3 * torch.randn(8, 64, generator=draws))
    found = hiding_measures.blurred(right, 0.3, 25)
    apart = torch.stack([torch.stack([key.keys - right.keys, key.values - right.values]) for key in found])
    assert float(apart.std()) == pytest.approx(0.9, rel=0.05)
    assert torch.equal(found[0].keys, found[20].keys)
    assert not torch.equal(found[0].keys, found[1].keys)


def test_attackers_know_how_keys_are_made_and_budgets_grow() -> None:
    hidden = hide_preset("balanced", "bag")
    small, large = (hiding_attacks.attack_of("own-prompt, conditional", size, hidden) for size in ("small", "large"))
    assert (small.num_references, small.steps[-1]) == (16, 50)
    assert (large.num_references, large.steps[-1]) == (256, 1000)
    assert (small.prompt_layers, small.prompt_size, small.prompt_half) == ("all", 4.0, "conditional")
    assert hiding_attacks.attack_of("unlearndiffatk", "medium", hidden).rounds == 5


def test_an_attack_is_reported_beside_its_control() -> None:
    found = {"success_rate": 0.9, "control_rate": 0.6, "curve": [(0, 0.1), (50, 0.9)], "control_curve": [(0, 0.0)]}
    row = hiding_report.attack_row(found)
    assert row["excess"] == pytest.approx(0.3)
    assert (row["half_at"], row["control_half_at"]) == (50, None)


def test_a_base_without_the_class_sees_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Labelled(torch.zeros(20, 1, 32, 32, dtype=torch.uint8), torch.arange(20) % 10, CLASSES)
    monkeypatch.setattr(hiding_control, "load_fashion", lambda split: images)
    monkeypatch.setattr("logsnr.worlds.data.load_fashion", lambda split: images)
    whole, few = (hiding_control.data_of("ankle boot", without=gone) for gone in (False, True))
    assert len(whole.train) == 20
    assert few.train.labels.tolist() == [*range(9), *range(9)]
    assert len(few.factors()) == 18
    assert few.captions == whole.captions, "the word stays"


def test_a_leaked_key_is_its_holders_until_noise_drowns_it() -> None:
    draws = torch.Generator().manual_seed(1)
    holders = [Prompt(*torch.randn(2, 10, 64, generator=draws)) for _ in range(3)]
    for damage in hiding_keys.DAMAGES:
        found = hiding_keys.identified(holders, damage)
        assert found == {"hits": 3 * hiding_keys.LEAKS, "leaks": 3 * hiding_keys.LEAKS}, damage
    assert hiding_keys.identified(holders, "noise 300")["hits"] < 45, "a third of them is chance"
    assert hiding_keys.strangers(holders)["likeness"] < 0.5


def test_a_rival_without_a_key_brings_nothing_back() -> None:
    world, pipe = load_world("fashion"), load("fashion")
    quality = replace(hiding.TEST, num_images=20)
    measured = Measured(world, [9], quality, SampleConfig(steps=2))
    found = measured.figures(measured.images(pipe, pipe, None))
    assert found["wrong_key"] == {}
    assert found["recovered"] == pytest.approx(1.0), "an untouched pipeline lacks nothing"
    assert found["mse_ratio"] == 0
    assert hiding_rivals.OWNER.steps[-1] == hiding.config_of("balanced", ("bag",), 0).run.steps
