"""Erase, sample with the delta and evaluate it, through the command line on the embedded world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import called, result
from PIL import Image

from logsnr.models.delta import Delta

QUICK = {"trajectory_steps": 4, "timestep_sampling": "weight", "candidates": {"num_centers": 5}}


def test_a_concept_is_erased_sampled_and_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = tmp_path / "options.json"
    options.write_text(json.dumps(QUICK))
    command = ["erase", "fashion", "--target", "ankle boot", "--config", str(options), "--strength", "0.3"]
    command += ["--steps", "12", "--batch-size", "4", "--out", str(tmp_path / "run")]
    dry = result(capsys, *command, "--dry-run")
    assert not (tmp_path / "run").exists()
    made = result(capsys, *command, "--quiet", "--export", "kohya", "comfyui", "--rank", "4")
    assert {"delta", "network_evaluations", "evaluation_equivalents", "seconds", "candidates"} <= made.keys()
    assert made["network_evaluations"] < 12 * dry["network_evaluations"]
    assert "bootie" not in made["candidates"]["ankle boot"]
    assert len(made["candidates"]["ankle boot"]) == 5
    delta = Delta.from_pretrained(made["delta"])
    assert all(name.startswith("unet.") and ".attn2." in name for name in delta.tensors)
    assert delta.record.targets == ("ankle boot",)
    assert delta.record.config["strength"] == 0.3

    assert 0 < made["exports"]["kohya"]["error"] < 1
    assert made["exports"]["comfyui"]["error"] == 0
    assert set(Delta.from_pretrained(tmp_path / "run" / "rank-4").tensors) < set(delta.tensors)

    drawn = []
    for more in ([], ["--delta", made["delta"]]):
        out = str(tmp_path / f"images{len(more)}")
        sampled = result(capsys, "sample", "fashion", "--prompt", "an ankle boot", "--steps", "5", "--out", out, *more)
        drawn.append(np.asarray(Image.open(sampled["images"][0]), dtype=int))
        assert json.loads(Path(sampled["record"]).read_text())["deltas"] == more[1:]
    assert abs(drawn[0] - drawn[1]).max() > 20

    found = tmp_path / "found"
    command = ["evaluate", "fashion", "--delta", made["delta"], "--protocol", "erasure", "--steps", "4"]
    values = result(capsys, *command, "--num-images", "60", "--quiet", "--out", str(found))
    keys = {"esr1", "esr5", "psr1", "psr5", "relative_esr1", "relative_psr1", "per_concept", "protocol"}
    assert keys <= values.keys()
    assert values["esr1"] > values["before"]["esr1"]
    assert values["per_concept"]["ankle boot"]["erased"]
    worse = values["explained_worse"]
    assert worse["erased"]["value"] > worse["kept"]["value"] + 2 * worse["kept"]["stderr"]
    assert values["protocol"]["targets"] == ["ankle boot"]
    assert {path.name for path in found.iterdir()} == {"result.json", "report.html", "before-after.png", "images.csv"}
    assert json.loads((found / "result.json").read_text())["esr1"] == values["esr1"]

    command = ["evaluate", "fashion", "--delta", made["delta"], "--protocol", "atlas", "--steps", "3"]
    values = result(capsys, *command, "--num-images", "20", "--quiet", "--out", str(tmp_path / "atlas"))
    damage = {row["concept"]: row["damage"] for row in values["concepts"]}
    assert damage["boot"] > 2 * damage["bag"]  # a synonym of what was erased, and something else
    assert {path.name for path in (tmp_path / "atlas").iterdir()} == {"result.json", "atlas.png"}

    attacked = tmp_path / "attacked"
    command = ["attack", "fashion", "--delta", made["delta"], "--attack", "noise-probe", "--num-images", "8"]
    values = result(capsys, *command, "--rho", "0", "1", "--sampling-steps", "3", "--out", str(attacked), "--quiet")
    assert {"success_rate", "control_rate", "curve"} <= values.keys()
    assert (values["target"], values["unrelated"]) == ("ankle boot", "t-shirt")
    assert [at for at, _ in values["curve"]] == [0.0, 1.0]
    assert values["control_rate"] < 0.5
    assert {path.name for path in attacked.iterdir()} == {"result.json", "curve.png", "report.html"}


def test_candidates_are_listed_and_nothing_is_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["erase", "fashion", "--target", "ankle boot", "--list-candidates", "--out", str(tmp_path / "out")]
    found = result(capsys, *command)
    assert {"boot", "bootie", "ankle boot"} <= set(found["excluded"])
    assert "sneaker" in found["candidates"]["ankle boot"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["erase", "fashion"], "nothing to erase"),
        (["erase", "fashion", "--target", "boot", "--method", "magic"], "esd-x0"),
        (["erase", "fashion", "--target", "boot", "--adversary", "nobody"], "adversary"),
        (["erase", "fashion", "--target", "boot", "--modules", "attn9"], "xattn-kv"),
        (["erase", "fashion", "--target", "boot", "--rank", "0"], "rank"),
        (["erase", "fashion", "--target", "boot", "--method", "ca", "--adversary", "gumbel"], "no adversary"),
        (["erase", "fashion", "--target", "boot", "--after", "nowhere"], "nowhere"),
        (["erase", "fashion", "--target", "boot", "--config", "nowhere.json"], "nowhere.json"),
        (["erase", "fashion", "--target", "boot", "--method", "uce", "--list-candidates"], "no candidates"),
        (["sample", "fashion", "--prompt", "a bag", "--delta", "nowhere"], "nowhere"),
        (["evaluate", "fashion", "--protocol", "erasure"], "--delta"),
        (["attack", "fashion"], "--delta"),
        (["attack", "fashion", "--delta", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    code, out, err = called(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert code == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
