"""benchmarks/consistency_vectors.py: its data, its figures, and a short run of two rows."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def vectors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("consistency_vectors")


def test_every_row_changes_what_its_name_says(vectors: Any) -> None:
    made = {row: vectors.config_of(row, vectors.CELLS["main"], 0, 1000) for row in vectors.ROWS}
    assert len(made) == 16
    assert len({str(config) for config in made.values()}) == 15, "only the ladder's last step but one has two names"
    assert made["+ scale by the fit"] == made["full, no norm"]
    assert made["huber, scale of iCT"].scale_value == 0.00054
    assert {config.run.clip for config in made.values()} == {1e9}


def test_data_are_of_deviation_one_half_with_so_many_outliers(vectors: Any) -> None:
    clean = vectors.Vectors(vectors.Cell(contamination="none"), 20_000, 1)
    assert float(clean.latent.std()) == pytest.approx(0.5, abs=0.005)
    again = vectors.Vectors(vectors.Cell(contamination="none"), 20_000, 2)
    assert vectors.distances(clean.latent, again.latent)["frechet"] < 0.01
    wild = vectors.Vectors(vectors.Cell(), 20_000, 1).latent
    changed = (wild != clean.latent).float()
    assert float(changed.mean()) == pytest.approx(0.02, abs=0.001)
    assert float(wild.abs().max()) > 10 * float(clean.latent.abs().max())
    whole = (vectors.Vectors(vectors.Cell(contamination="samples"), 20_000, 1).latent != clean.latent).all(1)
    assert float(whole.float().mean()) == pytest.approx(0.02, abs=0.004)


def test_modes_are_found_only_where_they_are(vectors: Any) -> None:
    clean = vectors.Vectors(vectors.Cell(contamination="none"), 6000, 1)
    assert vectors.modes_found(clean.latent, clean) == 12
    assert vectors.modes_found(clean.latent[clean.modes < 5], clean) == 5


def test_a_short_run_is_kept(vectors: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vectors, "HELD_OUT", 500)
    words = ["--rows", "full", "--cells", "narrow", "--seeds", "100", "--steps", "12", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["consistency_vectors.py", *words])
    vectors.main()
    found = json.loads((tmp_path / "vectors-narrow-full-100.json").read_text())
    assert not found["diverged"]
    assert found["two"]["to_clean"]["sliced"] > 0
    assert found["gradient_p99"] > 0


def test_the_mean_velocity_of_a_straight_flow_is_known(vectors: Any) -> None:
    """x and n Gaussian: the flow is linear, and so is its mean velocity; its derivative is by finite differences."""
    meanflow = importlib.import_module("meanflow")

    def network(z: Any, times: Any) -> Any:
        return z * times[:, :1] ** 2 + times[:, 1:].sin()

    z, v = (torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    r, t, step = torch.full((5,), 0.2).double(), torch.full((5,), 0.7).double(), 1e-6

    def at(z: Any, t: Any) -> Any:
        return network(z, torch.stack([t, t - r], 1))

    mean, slope = meanflow.mean_velocity(network, z, r, t, v)
    assert torch.equal(mean, at(z, t))
    ahead, behind = (at(z + sign * step * v, t + sign * step) for sign in (1, -1))
    assert torch.allclose(slope, (ahead - behind) / (2 * step), atol=1e-8)
    steady = meanflow.generated(lambda z, times: torch.ones_like(z), torch.zeros(2, 3), [1.0, 0.4])
    assert torch.allclose(steady, torch.full((2, 3), -0.5)), "a unit velocity goes as far as there is time"


def test_mean_flow_is_a_row_like_the_others(vectors: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vectors, "HELD_OUT", 1000)
    short = vectors.measure("mean flow", "narrow", 100, 20)
    longer = vectors.measure("mean flow", "narrow", 100, 400)
    assert not short["diverged"]
    assert longer["one"]["to_clean"]["sliced"] < 0.8 * short["one"]["to_clean"]["sliced"]


def test_headlines_are_ratios_to_the_teacher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    report = importlib.import_module("consistency_report")
    teacher = [
        {
            "name": f"{calls} calls",
            "frechet_distance": 24.0 / calls,
            "judge_accuracy_second": 0.9,
            "seconds": 10.0 * calls,
        }
        for calls in (1, 2, 4, 8, 20)
    ]
    (tmp_path / "teacher.json").write_text(json.dumps({"rows": teacher}))
    for seed, factor in ((0, 1.0), (1, 2.0)):
        rows = [
            {"name": "1 calls", "frechet_distance": 1.2 * factor, "judge_accuracy_second": 0.81, "seconds": 10.0},
            {"name": "2 calls", "frechet_distance": 0.6 * factor, "judge_accuracy_second": 0.9, "seconds": 20.0},
        ]
        row = {"seed": seed, "train_seconds": 100.0, "rows": rows, "recipe": "x", "config": {}}
        (tmp_path / f"few-distil-{seed}.json").write_text(json.dumps(row))
    rows, headlines = report.few_step(tmp_path)
    found = {entry["name"]: entry for entry in headlines}
    assert found["one_step_judge_ratio"]["value"] == pytest.approx(0.9)
    assert not found["one_step_judge_ratio"]["met"]
    assert found["one_step_frechet_ratio"]["value"] == pytest.approx(1.5)
    assert found["two_step_frechet_ratio"]["value"] == pytest.approx(0.75)
    assert (found["two_step_frechet_ratio"]["low"], found["two_step_frechet_ratio"]["high"]) == (0.5, 1.0)
    assert found["two_step_frechet_over_teacher_four_steps"]["value"] == pytest.approx(0.15)
    assert {row["model"] for row in rows if "model" in row} == {"teacher", "distilled"}
    further = {row["figure"]: row["value"] for row in rows if "figure" in row}
    assert further["frechet of two calls over one"] == pytest.approx(0.5)
    assert further["seconds of the teacher's twenty over two calls"] == pytest.approx(10.0)
    assert report.few_step(tmp_path / "none") == ([], [])
