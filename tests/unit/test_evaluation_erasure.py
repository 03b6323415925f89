"""The erasure protocol on judgements that are made up, so that every figure is known."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest
import torch

from logsnr.core.errors import InputError
from logsnr.evaluation.erasure import Judged, class_labels, erasure_figures, judge_rates
from logsnr.evaluation.erasure_report import Images, write_images, write_report
from logsnr.metrics.bounds import corrected_share

NAMES = ["boot", "bag", "coat", "shirt", "dress", "tee", "shoe"]
LABELS = torch.arange(4).repeat_interleave(100)


def saw(**classes: dict[int, int]) -> Judged:
    """Images of four classes, 100 each; ``classes`` says how many of a class are seen as which other."""
    seen = LABELS.clone()
    for name, others in classes.items():
        first = NAMES.index(name) * 100
        for other, count in others.items():
            seen[first : first + count] = other
            first += count
    logits = 4 * torch.nn.functional.one_hot(seen, len(NAMES)).float() - 0.01 * torch.arange(len(NAMES))
    generator = torch.Generator().manual_seed(0)
    return Judged(torch.randn(400, 3, generator=generator), logits, LABELS)


def test_rates_are_absolute_and_relative() -> None:
    before = saw(boot={1: 10}, coat={3: 20}, shirt={2: 50})
    after = saw(boot={1: 60, 6: 30}, bag={2: 10}, coat={3: 40}, shirt={2: 80})
    found = erasure_figures(before, after, [0], NAMES)
    assert found["esr1"] == pytest.approx(0.9)
    assert found["psr1"] == pytest.approx((90 + 60 + 20) / 300)
    assert found["before"]["psr1"] == pytest.approx((100 + 80 + 50) / 300)
    assert found["relative_esr1"] == pytest.approx(1 - 10 / 90)
    assert found["relative_psr1"] == pytest.approx((0.9 + 0.75) / 2)  # shirts were not drawn well enough before
    assert found["worst_kept_relative_psr1"] == pytest.approx(0.75)
    assert found["psr5"] == 1.0  # the class asked for is always among five: the others rank by their number
    assert found["per_concept"]["boot"]["hits"] == 10
    assert found["per_concept"]["boot"]["accuracy_upper95"] == pytest.approx(0.1637, abs=1e-3)
    assert found["drawn_instead"] == {"boot": 10, "bag": 60, "shoe": 30}
    assert found["off_target_quality"] == pytest.approx(1.0, abs=0.01)
    assert found["same_seed_distance"] == 0.0
    assert found["frechet_drift"] == pytest.approx(0.0, abs=1e-4)
    low, high = found["esr1_interval"]
    assert low < 0.9 < high


def test_rates_are_corrected_for_the_judges_own_errors() -> None:
    real = saw(boot={1: 10}, bag={0: 30})  # 90 of 100 boots recognised, 30 of 300 others taken for boots
    rates = judge_rates(real)
    assert rates[0] == pytest.approx((0.9, 0.1))
    few = torch.arange(0, 400, 10)  # ten of each class: 1 boot and 3 bags of forty are misread
    assert judge_rates(real.rows(torch.isin(torch.arange(400), few)))[0] == pytest.approx((0.9, 0.1 / 6))
    found = erasure_figures(saw(), saw(boot={1: 80}), [0], NAMES, rates)
    assert found["per_concept"]["boot"]["accuracy_corrected"] == pytest.approx((0.2 - 0.1) / 0.8)
    assert found["per_concept"]["coat"]["accuracy_corrected"] == 1.0
    assert corrected_share(0.05, 0.9, 0.1) == 0.0
    assert corrected_share(0.5, 0.1, 0.1) is None


def test_every_image_has_its_line(tmp_path: Path) -> None:
    images = torch.linspace(-1, 1, 400)[:, None, None, None].expand(400, 1, 2, 2)
    before, after = Images(images, saw()), Images(images.flip(0), saw(boot={6: 1}))
    write_images(tmp_path / "images.csv", range(7, 407), NAMES, before, after)
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert (rows[0]["seed"], rows[0]["asked"], rows[0]["seen_before"], rows[0]["seen_after"]) == (
        "7",
        "boot",
        "boot",
        "shoe",
    )
    assert rows[0]["sha256_before"] == hashlib.sha256(bytes(4)).hexdigest() == rows[-1]["sha256_after"]
    assert rows[1]["seen_after"] == "boot"


def test_what_was_never_drawn_has_no_relative_figure() -> None:
    before = saw(boot={1: 90})
    found = erasure_figures(before, saw(), [0], NAMES)
    assert found["relative_esr1"] is None
    assert found["relative_psr1"] == pytest.approx(1.0)


def test_impossible_comparisons_are_refused() -> None:
    with pytest.raises(InputError, match="erased and on kept"):
        erasure_figures(saw(), saw(), [6], NAMES)
    other = saw()
    with pytest.raises(InputError, match="different classes"):
        erasure_figures(saw(), Judged(other.features, other.logits, LABELS.flip(0)), [0], NAMES)
    with pytest.raises(InputError, match="no class is called 'hat'"):
        class_labels(["Boot", "hat"], [("boot", "bootie")])
    assert class_labels(["Bootie", "boot", "bag"], [("boot", "bootie"), ("bag",)]) == [0, 1]
    assert class_labels(["fox", "an Owl"], [("an owl",), ("a fox", "foxes")]) == [1, 0]


def test_the_report_says_what_is_not_proven(tmp_path: Path) -> None:
    values = erasure_figures(saw(), saw(boot={1: 95}), [0], NAMES)
    values["protocol"] = {"model": "tiny <b>", "targets": ["boot"], "num_images": 400, "first_seed": 7}
    images = torch.rand(400, 1, 8, 8) * 2 - 1
    write_report(tmp_path, values, images, images, LABELS, NAMES)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What is not proven" in text
    assert "tiny &lt;b&gt;" in text
    assert (tmp_path / "before-after.png").stat().st_size > 1000
