"""The arithmetic of the erasure benchmark: matched erasure, what is not reached, paired intervals, and its arms."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import erasure
import erasure_arms
import erasure_report
from erasure_report import Run, at_level, difference, kept_at, relative

from logsnr.data.captions import Captions
from logsnr.data.fashion import NAMES


def run_of(arm: str, gone: list[float], kept: list[float], *, seed: int = 0, images: int = 100) -> Run:
    """Class 0 is erased to these shares at three strengths, the others kept to those."""
    draws = np.random.default_rng(seed)
    uniform = draws.random((10, images))  # the same images in every arm of a seed
    shares = [[1 - g] + [k] * 9 for g, k in zip(gone, kept, strict=True)]
    after = np.stack([(uniform < np.array(share)[:, None]).astype(float) for share in shares])
    return Run(arm, "A", "informed", seed, (0,), after, np.ones((10, images)), {"train_seconds": 1.0})


def test_what_is_kept_is_read_between_two_strengths() -> None:
    assert at_level(np.array([0.5, 0.9, 1.0]), np.array([1.0, 0.9, 0.7]), 0.95) == pytest.approx(0.8)
    assert at_level(np.array([0.96, 1.0]), np.array([0.9, 0.7]), 0.95) == pytest.approx(0.9)
    assert np.isnan(at_level(np.array([0.2, 0.8]), np.array([1.0, 0.9]), 0.95))


def test_relative_figures_leave_out_what_was_never_drawn() -> None:
    after, before = np.array([[0.1, 0.6, 0.4] + [0.9] * 7]), np.array([1.0, 0.8, 0.5] + [1.0] * 7)
    erased, kept, worst = relative(after, before, [0])
    assert erased[0] == pytest.approx(0.9)
    assert kept[0] == pytest.approx((0.75 + 7 * 0.9) / 8)
    assert worst[0] == pytest.approx(0.75)


def test_a_paired_difference_has_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure_report, "RESAMPLES", 200)
    gone = [0.5, 0.9, 1.0]
    matched = [
        (run_of("EAP", gone, [1, 0.95, 0.95], seed=s), run_of("ESD", gone, [1, 0.85, 0.85], seed=s)) for s in range(4)
    ]
    value, low, high = difference(matched, lambda run, images: kept_at(run, 0.95, images))
    assert low < value < high
    assert value == pytest.approx(0.1, abs=0.02)
    assert low > 0.05
    same = [(a, a) for a, _ in matched]
    assert difference(same, lambda run, images: kept_at(run, 0.95, images)) == (0.0, 0.0, 0.0)


def test_only_strengths_that_matter_are_tested() -> None:
    looks = [{"relative_esr1": value} for value in (0.1, 0.5, 0.93, 0.97, 0.98)]
    assert erasure.brackets(looks) == [1, 2, 3, 4]
    assert erasure.brackets(looks[:2]) == [1]


def test_a_task_knows_of_kept_classes_what_it_may() -> None:
    captions = Captions(NAMES)
    informed, blind = (
        erasure_arms.task_of(captions, ("ankle boot",), 0, informed=informed) for informed in (True, False)
    )
    assert "sneaker" in informed.words
    assert "sneaker" in informed.kept
    assert not {"ankle boot", "boot", "bootie"} & set(informed.words)
    parts = {part for names in NAMES for name in names for part in name.split()}
    assert not parts & set(blind.words)
    assert {"photo", "dark"} <= set(blind.words)
    halves = erasure.splits()
    assert set(halves["A"]) | set(halves["A'"]) == set(erasure.CLASSES)
    assert len(halves["A"]) == len(halves["B'"]) == 5


def test_bits_come_back_as_hits() -> None:
    hits = torch.rand(50) < 0.5
    found = erasure_report._hits(erasure._bits(hits))
    assert found.shape == (10, 5)
    assert (found[3] == hits[3::10].float().numpy()).all()
