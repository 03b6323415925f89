"""The command line on the embedded world: JSON contract, exit codes, one line for bad input and nothing left behind."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import called, result
from PIL import Image
from pipelines import tiny_sd
from recipes import FewFashion

from logsnr.data.fashion import find_fashion
from logsnr.worlds.config import STAGES
from logsnr.worlds.data import SOURCES
from logsnr.worlds.load import WORLDS, load_world


def test_sample_writes_images_a_sheet_and_a_record(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["sample", "fashion", "--prompt", "a photo of a sneaker", "--steps", "8", "--out", str(out)]
    values = result(capsys, *command, "--seeds", "0-7")
    assert {"images", "grid", "nfe", "seconds", "record"} <= values.keys()
    assert values["nfe"] == 8
    assert values["network_evaluations"] == 8 * 8 * 2
    assert len(values["images"]) == 8
    assert Image.open(values["images"][0]).size == (32, 32)
    assert Image.open(values["grid"]).size[0] > 32
    record = json.loads(Path(values["record"]).read_text())
    assert record["prompt"] == "a photo of a sneaker"
    assert record["seeds"] == list(range(8))
    assert len(record["levels"]) == 9
    alone = result(capsys, *command[:-1], str(tmp_path / "alone"), "--seeds", "5")
    first, second = (np.asarray(Image.open(path), dtype=int) for path in (values["images"][5], alone["images"][0]))
    assert abs(first - second).max() <= 1


def test_dry_run_says_what_it_would_cost_and_writes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, "sample", "fashion", "--prompt", "a bag", "--dry-run", "--out", str(tmp_path / "out"))
    assert values["network_evaluations"] == 40
    assert values["memory_mb"] > 0
    assert len(values["would_write"]) == 3
    assert not (tmp_path / "out").exists()
    values = result(capsys, "train", "fashion", "--stages", "judge", "--dry-run", "--out", str(tmp_path / "out"))
    assert values["network_evaluations"] == 4700 * 128
    assert not (tmp_path / "out").exists()


def test_a_dry_run_on_a_finished_world_tries_its_denoiser(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SOURCES, "fashion", FewFashion())
    out = tmp_path / "out"
    for command, steps in ((["fashion", "--start-from", "fashion"], 12000), (["fashion-flow"], 14000)):
        values = result(capsys, "train", *command, "--dry-run", "--out", str(out))
        assert values["steps"] == {"denoiser": steps}
        assert values["would_write"] == [str(out / stage) for stage in STAGES]
    code, _, err = called(capsys, "train", "fashion-flow", "--stages", "judge", "--dry-run", "--out", str(out))
    assert (code, err.count("\n")) == (2, 1)
    assert "only the denoiser" in err
    assert not out.exists()


def test_evaluate_prints_value_protocol_and_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SOURCES, "fashion", FewFashion())
    values = result(capsys, "evaluate", "fashion", "--num-images", "60", "--steps", "4", "--out", str(tmp_path))
    keys = {"frechet_distance", "frechet_stderr", "floor", "recall", "judge_accuracy", "judge_accuracy_second"}
    assert keys | {"per_class", "protocol"} <= values.keys()
    assert values["frechet_stderr"] > 0
    assert len(values["per_class"]) == 10
    assert values["judge_accuracy_second"] > 0.7
    assert values["real_test_accuracy"] > 0.85
    assert values["protocol"]["num_images"] == 60
    assert values["protocol"]["sampling"]["steps"] == 4
    assert json.loads((tmp_path / "result.json").read_text())["floor"] == values["floor"]


def test_doctor_tells_versions_devices_and_data(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = result(capsys, "doctor")
    assert {"versions", "devices", "data", "missing"} <= values.keys()
    assert values["versions"]["torch"] == torch.__version__
    monkeypatch.setenv("LOGSNR_DATA", "/nowhere")
    monkeypatch.setattr("logsnr.data.fashion._DEBIAN", Path("/nowhere"))
    assert any("dataset-fashion-mnist" in line for line in result(capsys, "doctor")["missing"])


def test_demo_writes_one_page_with_its_images_inside(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, "demo", "--out", str(tmp_path), "--judged", "40")
    page = Path(values["report"]).read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http" not in page.replace("http-equiv", "")
    assert values["seconds"] < 120
    assert values["verified"]["parity"] <= 1e-4
    assert {"sample", "evaluations", "erase", "attack", "hide", "quality", "speed", "verified"} <= values.keys()
    assert values["erase"]["relative_esr1"] > 0.8
    assert values["attack"]["success_rate"] > values["attack"]["control_rate"] + 0.5
    assert values["hide"]["revealed"] > max(values["hide"]["hidden"], values["hide"]["wrong key"]) + 0.7


def folder_of(name: str, tmp_path: Path) -> str:
    """A model folder that is broken in a given way."""
    folder = tmp_path / "broken"
    if name == "truncated weights":
        tiny_sd().save_pretrained(folder)
        weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:500])
    elif name == "no index":
        (folder / "unet").mkdir(parents=True)
    elif name == "text file":
        folder.write_text("no model")
    elif name == "broken single file":
        folder = tmp_path / "model.safetensors"
        folder.write_bytes(b"\x00" * 64)
    return str(folder)


@pytest.mark.parametrize("name", ["truncated weights", "no index", "text file", "broken single file", "not there"])
def test_a_broken_model_is_one_line_and_exit_two(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    code, printed, err = called(capsys, "sample", folder_of(name, tmp_path), "--prompt", "x", "--out", str(out))
    assert code == 2
    assert printed == ""
    assert err.count("\n") == 1
    assert err.startswith("logsnr: ")
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--steps", "-1"],
        ["--steps", "0"],
        ["--steps", "four"],
        ["--seeds", "7-0"],
        ["--seeds", "a"],
        ["--rho", "-0.5"],
        ["--order", "7"],
        ["--guidance-scale", "nan"],
        ["--grid", "spiral"],
        ["--steps", "2000"],
        ["--no-such-flag"],
    ],
)
def test_bad_options_are_one_line_and_exit_two(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: list[str]
) -> None:
    out = tmp_path / "out"
    code, printed, err = called(capsys, "sample", "fashion", "--prompt", "x", "--out", str(out), *wrong)
    assert (code, printed, err.count("\n")) == (2, "", 1)
    assert not out.exists()


def test_an_unwritable_out_is_refused_before_any_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    for verb in (["sample", "fashion", "--prompt", "x"], ["train", "fashion"], ["demo"]):
        code, _, err = called(capsys, *verb, "--out", str(file / "below"))
        assert (code, err.count("\n")) == (2, 1), err
    assert file.read_text() == "kept"


@pytest.mark.parametrize("model", ["nobody/nothing", "no-such-world"])
def test_an_unknown_model_is_one_line(capsys: pytest.CaptureFixture[str], model: str) -> None:
    code, _, err = called(capsys, "sample", model, "--prompt", "x")
    assert (code, err.count("\n")) == (2, 1)
    assert model in err


def test_a_truncated_data_file_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(find_fashion(), data)
    images = data / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:10_000])
    monkeypatch.setenv("LOGSNR_DATA", str(data))
    code, _, err = called(capsys, "train", "fashion", "--out", str(tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1)
    assert "train-images" in err
    assert not (tmp_path / "out").exists()
    images.write_bytes(gzip.compress(b"\x00\x00\x08\x03" + b"\x00" * 100))
    assert called(capsys, "train", "fashion", "--out", str(tmp_path / "out"))[0] == 2


def test_train_refuses_to_run_over_unfinished_work(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["train", "fashion", "--stages", "judge", "--steps", "3", "--batch-size", "4", "--out", str(tmp_path)]
    (tmp_path / "work" / "judge").mkdir(parents=True)
    code, _, err = called(capsys, *command)
    assert (code, err.count("\n")) == (2, 1)
    assert "--resume" in err
    assert called(capsys, *command, "--resume")[0] == 0
    assert (tmp_path / "judge" / "config.json").exists()


def test_the_real_command_runs(tmp_path: Path) -> None:
    """Once through a process of its own, as a user's shell would."""
    command = [sys.executable, "-m", "logsnr", "sample", "fashion", "--prompt", "a bag", "--steps", "2", "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["nfe"] == 2


def test_the_embedded_world_is_a_plain_pipeline_under_twelve_megabytes() -> None:
    for folder in WORLDS.values():
        edits = load_world(folder.name.replace("_", "-")).edits
        assert sum(path.stat().st_size for path in edits.rglob("*") if path.is_file()) < 2e6
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12e6
        assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]
