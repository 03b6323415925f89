"""The arithmetic of the erasure benchmark: matched erasure, what is not reached, paired intervals, and its arms."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import erasure
import erasure_arms
import erasure_attacks
import erasure_panels
import erasure_parts
import erasure_report
import erasure_runs
import erasure_tasks
import erasure_verdicts
from erasure_runs import Run, at_level, difference, kept_at, relative

from logsnr.attacks.config import ATTACKS
from logsnr.data.captions import Captions
from logsnr.data.emoji import emoji_captions, held_out_pairs
from logsnr.data.fashion import NAMES
from logsnr.models.pipeline import network_of


def run_of(
    arm: str, gone: list[float], kept: list[float], *, seed: int = 0, images: int = 100, world: str = "fashion"
) -> Run:
    """Class 0 is erased to these shares at three strengths, the others kept to those."""
    draws = np.random.default_rng(seed)
    uniform = draws.random((10, images))  # the same images in every arm of a seed
    shares = [[1 - g] + [k] * 9 for g, k in zip(gone, kept, strict=True)]
    after = np.stack([(uniform < np.array(share)[:, None]).astype(float) for share in shares])
    return Run(world, arm, "A", "informed", seed, (0,), after, np.ones((10, images)), {"train_seconds": 1.0})


def test_what_is_kept_is_read_between_two_strengths() -> None:
    assert at_level(np.array([0.5, 0.9, 1.0]), np.array([1.0, 0.9, 0.7]), 0.95) == pytest.approx(0.8)
    assert at_level(np.array([0.96, 1.0]), np.array([0.9, 0.7]), 0.95) == pytest.approx(0.9)
    assert np.isnan(at_level(np.array([0.2, 0.8]), np.array([1.0, 0.9]), 0.95))


def test_relative_figures_leave_out_what_was_never_drawn() -> None:
    before = (np.array([1.0, 0.8, 0.5] + [1.0] * 7)[:, None] > np.arange(10) / 10 + 0.01).astype(float)
    after = (np.array([0.1, 0.6, 0.4] + [0.9] * 7)[:, None] > np.arange(10) / 10 + 0.01).astype(float)[None]
    erased, kept, worst = relative(after, before, [0])
    assert erased[0] == pytest.approx(0.9)
    assert kept[0] == pytest.approx((0.75 + 7 * 0.9) / 8)
    assert worst[0] == pytest.approx(0.75)
    drawn = erasure_runs.Drawn(np.zeros((10, 10), dtype=int), np.array([0]), np.array([1, 1, 1, 3, 3, 3, 3, 3, 3]))
    assert relative(after, before, [0], drawn)[0][0] == pytest.approx(0.0)  # its first image alone still shows it


def test_a_paired_difference_has_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_runs, "RESAMPLES", 200)
    gone = [0.5, 0.9, 1.0]
    matched = [
        (run_of("EAP", gone, [1, 0.95, 0.95], seed=s), run_of("ESD", gone, [1, 0.85, 0.85], seed=s)) for s in range(4)
    ]
    value, low, high = difference(matched, lambda run, drawn: kept_at(run, 0.95, drawn))
    assert low < value < high
    assert value == pytest.approx(0.1, abs=0.02)
    assert low > 0.05
    same = [(a, a) for a, _ in matched]
    assert difference(same, lambda run, drawn: kept_at(run, 0.95, drawn)) == (0.0, 0.0, 0.0)


def test_only_strengths_that_matter_are_tested() -> None:
    looks = [{"relative_esr1": value} for value in (0.1, 0.5, 0.93, 0.97, 0.98)]
    assert erasure.brackets(looks) == [1, 2, 3, 4]
    assert erasure.brackets(looks[:2]) == [1]


def test_a_task_knows_of_kept_classes_what_it_may() -> None:
    captions = Captions(NAMES)
    informed, blind = (
        erasure_tasks.task_of(captions, ("ankle boot",), 0, informed=informed) for informed in (True, False)
    )
    assert "sneaker" in informed.words
    assert "sneaker" in informed.kept
    assert not {"ankle boot", "boot", "bootie"} & set(informed.words)
    assert {"a photo of a sneaker", "trainer", "dark"} <= set(informed.prompts)
    assert not any("boot" in prompt for prompt in informed.prompts)
    assert blind.prompts == blind.words
    assert "a photo of a {}" in informed.templates
    parts = {part for names in NAMES for name in names for part in name.split()}
    assert not parts & set(blind.words)
    assert {"photo", "dark"} <= set(blind.words)
    halves = erasure_tasks.tasks("fashion")
    assert set(halves["A"]) | set(halves["A'"]) == set(erasure_panels.CLASSES)
    assert len(halves["A"]) == len(halves["B'"]) == 5


def test_bits_come_back_as_hits() -> None:
    hits = torch.rand(50) < 0.5
    found = erasure_runs._hits(erasure._bits(hits), 10)
    assert found.shape == (10, 5)
    assert (found[3] == hits[3::10].float().numpy()).all()


def test_a_ratio_has_its_interval_and_its_ends() -> None:
    value, low, high = erasure_parts.ratio([0.2, 0.4, 0.3], [0.4, 0.8, 0.6])
    assert (value, low, high) == pytest.approx((0.5, 0.5, 0.5))
    assert erasure_parts.ratio([0.0], [0.0]) == (1.0, 1.0, 1.0)
    assert erasure_parts.ratio([0.1], [0.0])[0] == float("inf")


def test_figures_of_eap_are_read_at_matched_erasure() -> None:
    runs = [run_of(arm, [0.5, 0.9, 1.0], [1, 0.95, 0.95]) for arm in ("EAP, projected", "EAP", "EAP, released scheme")]
    for run, price in zip(runs, (50, 100, 1000), strict=True):
        tests = [{"off_target_quality": 1 - place / 10, "cost": price * (place + 1)} for place in range(3)]
        run.row["tests"] = tests
    found = {entry["name"]: entry for entry in erasure_report.of_ours(runs)}
    assert found["evaluation_ratio_to_released"]["value"] == pytest.approx(0.1)
    assert found["evaluation_ratio_to_released"]["met"]
    assert 0.8 < found["off_target_quality"]["value"] < 0.9  # between the second and the third test
    assert found["worst_kept_relative_psr"]["value"] == pytest.approx(0.93, abs=0.04)


def test_parts_beside_the_table_become_rows_and_headlines(tmp_path: Path) -> None:
    reached = {"success_interval": [0, 1], "curve": [[0, 0.1]], "prompts": ["x"], "network_evaluations": 5}
    for arm, rate in (("EAP, robust", 0.3), ("AdvUnlearn", 0.5)):
        attack = {"success_rate": rate, "control_rate": 0.1, **reached}
        part = {"arm": arm, "target": "bag", "figures": {"relative_esr1": 1.0, "relative_psr1": 0.9}}
        (tmp_path / f"attacks-bag-{arm}.json").write_text(json.dumps({**part, "attacks": {"unlearndiffatk": attack}}))
    rows, headlines = erasure_parts.attacks(tmp_path)
    assert len(rows) == 2
    assert headlines[0]["value"] == pytest.approx(0.5)
    part = {"relative_esr1": 1.0, "worst_erased_relative_esr1": 1.0, "seconds": 1.0, "seed": 0}
    for world in ("fashion", "emoji"):
        for arm, kept in (("protected", 0.96), ("joint", 0.98)):
            row = {**part, "world": world, "arm": arm, "relative_psr1": kept}
            (tmp_path / f"sequential-{world}-{arm}-0.json").write_text(json.dumps(row))
    rows, headlines = erasure_parts.sequential(tmp_path)
    assert len(rows) == 4
    assert headlines[0]["value"] == pytest.approx(0.96 / 0.98)
    assert erasure_parts.memory(tmp_path) == ([], [])
    (tmp_path / "memory.json").write_text(json.dumps({"size": "full", "ratio": 0.55, "rows": [{"copies": 1}]}))
    assert erasure_parts.memory(tmp_path)[1][0]["met"]


def test_hypotheses_have_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_runs, "RESAMPLES", 400)
    gone, runs = [0.5, 0.94, 1.0], []
    for seed in range(3):
        for arm, kept in (("EAP", 0.9), ("ESD", 0.7), ("ESD + x0", 0.8), ("UCE, empty prompt", 0.95), ("CA", 0.9)):
            runs.append(run_of(arm, gone, [1, kept, kept], seed=seed))
    found = {row["hypothesis"]: row for row in erasure_verdicts.verdicts(runs)}
    assert set(found) == {"H1", "H2", "H7"}  # the arms of the others were not run
    assert found["H1"]["verdict"] == "not supported"  # above ESD, below UCE
    assert [test["p"] < 0.05 for test in found["H1"]["tests"]][:2] == [True, False]
    assert found["H2"]["p_holm"] >= found["H2"]["p"]
    assert found["H7"]["share_of_the_gap"] == pytest.approx(0.5, abs=0.1)
    better = [run for run in runs if run.arm != "UCE, empty prompt"]
    better += [run_of("UCE, empty prompt", gone, [1, 0.6, 0.6], seed=seed) for seed in range(3)]
    assert {row["hypothesis"]: row for row in erasure_verdicts.verdicts(better)}["H1"]["verdict"] == "supported"


def test_hypotheses_about_emoji_have_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_runs, "RESAMPLES", 400)
    monkeypatch.setattr(erasure_verdicts, "RESAMPLES", 400)
    gone, runs = [0.5, 0.94, 1.0], []
    kept = {"EAP": 0.9, "EAP, random": 0.8, "EAP, fixed empty prompt": 0.7, "EAP, 2 steps": 0.7, "EAP, 4 steps": 0.9}
    kept |= {"EAP, 8 steps": 0.91, "EAP, 20 centers": 0.6, "EAP, 50 centers": 0.8, "EAP, 200 centers": 0.92}
    for arm, share in kept.items():
        runs += [run_of(arm, gone, [1, share, share], seed=seed, images=400, world="emoji") for seed in range(3)]
    atlases = [{"spearman": value, "empty_prompt_percentile": 0.5} for value in (-0.2, -0.3, -0.4)]
    found = {row["hypothesis"]: row for row in erasure_verdicts.verdicts(runs, atlases)}
    assert {name: row["verdict"] for name, row in found.items()} == dict.fromkeys(("H4", "H5", "H6"), "supported")
    atlases[0] |= {"empty_prompt_percentile": 0.9}
    atlases[1] |= {"empty_prompt_percentile": 0.8}
    assert erasure_verdicts.verdicts([], atlases)[0]["verdict"] == "inconclusive"
    turned = [{"spearman": 0.3, "empty_prompt_percentile": 0.5}] * 3
    assert erasure_verdicts.verdicts([], turned)[0]["verdict"] == "not supported"


@pytest.mark.parametrize("task", ["focus", "noto", "100"])
def test_a_panel_of_emoji_asks_for_classes_in_turns(task: str) -> None:
    world = SimpleNamespace(name="emoji", captions=emoji_captions())
    targets = erasure_tasks.tasks("emoji")[task]
    asked = erasure_panels.panel(world, targets, held_out=True)
    gone, names, of_styles = erasure_panels.erased_classes(world.captions, targets)
    count = len(asked.classes)
    assert asked.labels.tolist() == [asked.classes[place % count] for place in range(len(asked.prompts))]
    assert set(gone) <= set(asked.classes)
    assert asked.of_styles == of_styles == (task == "noto")
    assert count == {"focus": 160, "noto": 3, "100": 200}[task]
    assert len(asked.prompts) >= 1800
    said = [
        next(style for style in world.captions.styles if style in prompt.split())
        for prompt in (prompt.replace(",", " ") for prompt in asked.prompts)
    ]
    if of_styles:
        assert said == [names[label] for label in asked.labels]
    else:
        hidden = {(label, style) for label, style in held_out_pairs().nonzero().tolist()}
        shown = {(int(label), world.captions.styles.index(s)) for label, s in zip(asked.labels, said, strict=True)}
        assert not shown & hidden, "what training never saw is no measure of what an edit keeps"


def test_a_task_of_styles_says_nothing_of_the_erased_one() -> None:
    task = erasure_tasks.task_of(emoji_captions(), ("noto",), 0, informed=True)
    assert not any("noto" in prompt.replace(",", " ").split() for prompt in task.prompts)
    assert {"twemoji", "fluent", "a fox"} <= set(task.prompts)
    assert any("twemoji" in prompt and "{}" not in prompt for prompt in task.prompts if len(prompt.split()) > 2)
    assert "{} in twemoji style" in task.templates
    assert task.candidates().sampler == "distance_kmeans", "too many to look at all"
    objects = erasure_tasks.task_of(emoji_captions(), ("a fox",), 0, informed=True)
    assert not {"a fox"} & {*objects.prompts, *objects.words}
    assert len(objects.prompts) < 9000


def test_every_attack_has_a_budget() -> None:
    assert set(erasure_attacks.BUDGETS) == set(ATTACKS)


@pytest.mark.parametrize(("arm", "kind"), [("SPM", "spm"), ("EAP", "eap")])
def test_a_run_stops_at_the_highest_level_and_leaves_the_network_as_it_was(
    arm: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(erasure_panels.IMAGES, "fashion", (20, 20))
    monkeypatch.setitem(erasure.ARMS, arm, erasure_arms.trained(kind, snapshots=(1, 2, 3)))
    bench = erasure.Bench("fashion")
    network = network_of(bench.pipe)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    task = erasure_tasks.task_of(bench.world.captions, ("ankle boot",), 1, informed=True)
    looks: list[float] = []
    measure = bench.measure

    def measured(snapshot: Any, targets: Any, what: str) -> dict[str, Any]:
        found = measure(snapshot, targets, what)
        if what == "look":
            looks.append(snapshot.strength)
            found["relative_esr1"] = 1.0 if snapshot.strength == 2 else 0.0
        return found

    monkeypatch.setattr(bench, "measure", measured)
    row = erasure.run(bench, arm, task, "informed", tmp_path / "row.json")
    assert looks == [1, 2]
    assert [look["strength"] for look in row["looks"]] == looks
    assert ("adversary_hit_rate" in row) == (arm == "EAP")
    after = dict(network.named_parameters())
    assert after.keys() == before.keys(), "adapters are gone"
    assert all(torch.equal(value, after[name]) for name, value in before.items())
