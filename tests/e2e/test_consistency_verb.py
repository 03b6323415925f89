"""``logsnr consistency`` on the embedded world: a pipeline of one or two calls, resumed exactly, bad input refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import called, result
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from PIL import Image
from recipes import FewFashion

from logsnr.consistency import method
from logsnr.consistency.scheduler import ConsistencyScheduler
from logsnr.core.artifact import load_tensors
from logsnr.core.config import read_json
from logsnr.worlds.data import SOURCES

TRAIN = ["consistency", "train", "fashion", "--steps", "6", "--batch-size", "4", "--cpu", "--quiet"]
STAGES = ["--start-levels", "2", "--end-levels", "4"]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "fashion", FewFashion())
    monkeypatch.setattr(method, "_MEASURED", 1)


def test_a_trained_pipeline_samples_in_stock_diffusers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, *TRAIN, *STAGES, "--out", str(tmp_path))
    assert (values["model"], values["steps"]) == (str(tmp_path / "pipeline"), 6)
    pipe = StableDiffusionPipeline.from_pretrained(values["model"])
    assert isinstance(pipe.scheduler, ConsistencyScheduler)
    assert pipe.scheduler.config["prediction_type"] == "epsilon"
    assert pipe.scheduler.config["sigma_max"] == pytest.approx(14.6, abs=0.1), "the teacher's own"
    pipe.set_progress_bar_config(disable=True)
    for calls in (1, 2):
        made = pipe(
            "a boot",
            num_inference_steps=calls,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
            guidance_scale=1.0,
        ).images[0]
        assert 0.05 < made.mean() < 0.6
        assert made.std() > 0.1, "an image, not noise or nothing: the teacher's weights were the start"
    command = [sys.executable, "-m", "logsnr", "sample", values["model"], "--prompt", "a bag", "--steps", "1", "--json"]
    done = subprocess.run([*command, "--out", str(tmp_path / "made")], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["nfe"] == 1, "in a process where nobody has imported the scheduler"


def test_distilled_a_guidance_is_its_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, *TRAIN, *STAGES, "--preset", "distil", "--out", str(tmp_path))
    pipe = StableDiffusionPipeline.from_pretrained(values["model"])
    assert pipe.unet.config.time_cond_proj_dim is None
    assert pipe.scheduler.config["guidance"] == [1.25]
    (line, *_) = (tmp_path / "work" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["perceptual"] > 0, "the world's judge looks at what it makes"


def test_distilled_it_is_told_its_guidance(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "range.json").write_text('{"guidance": [1.0, 2.0]}')
    given = ["--preset", "distil", "--config", str(tmp_path / "range.json")]
    values = result(capsys, *TRAIN, *STAGES, *given, "--out", str(tmp_path))
    pipe = StableDiffusionPipeline.from_pretrained(values["model"])
    assert pipe.unet.config.time_cond_proj_dim == 256
    assert pipe.scheduler.config["guidance"] == [1.0, 2.0]
    asked = ["sample", values["model"], "--prompt", "a bag", "--out", str(tmp_path / "made")]
    planned = result(capsys, *asked, "--steps", "2", "--dry-run")
    made = result(capsys, *asked, "--steps", "2")
    assert planned["network_evaluations"] == made["network_evaluations"] == 2
    usual = result(capsys, *asked)
    assert usual["network_evaluations"] == 2, "nothing was asked for: as many calls as it has levels for"
    assert json.loads(Path(usual["record"]).read_text())["sampling"]["guidance_scale"] == 2.0
    code, _, err = called(capsys, *asked, "--steps", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert "take --steps 2" in err


def test_a_few_step_world_is_shown_beside_its_teacher(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = called(capsys, "demo", "--world", "fashion-few", "--out", str(tmp_path / "out"))
    assert (code, err.count("\n")) == (2, 1)
    assert "say --world fashion" in err
    assert not (tmp_path / "out").exists()


def test_from_scratch_the_network_is_drawn_anew(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, *TRAIN, *STAGES, "--start-from", "scratch", "--out", str(tmp_path))
    pipe = StableDiffusionPipeline.from_pretrained(values["model"])
    assert pipe.scheduler.config["prediction_type"] == "consistency"
    assert pipe.scheduler.config["sigma_max"] == pytest.approx(160.0)


def test_resumed_it_is_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "few.json").write_text('{"run": {"checkpoint_every": 4}, "averages": [0.5]}')
    common = [*TRAIN, *STAGES, "--config", str(tmp_path / "few.json")]
    result(capsys, *common, "--out", str(tmp_path / "whole"))
    result(capsys, *common, "--out", str(tmp_path / "again"))
    for path in (tmp_path / "again" / "pipeline", *(tmp_path / "again" / "work" / "checkpoints").glob("*-00000006")):
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.rmdir() if inner.is_dir() else inner.unlink()
        path.rmdir()
    code, _, err = called(capsys, *common, "--out", str(tmp_path / "again"))
    assert code == 2
    assert "add --resume" in err
    code, _, err = called(capsys, *common, "--out", str(tmp_path / "again"), "--resume", "--preset", "ict")
    assert code == 2
    assert "other settings" in err
    result(capsys, *common, "--out", str(tmp_path / "again"), "--resume")
    files = [tmp_path / run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors" for run in ("whole", "again")]
    whole, again = (load_tensors(path) for path in files)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--start-levels", "8", "--end-levels", "4"], "must rise"),
        (["--start-levels", "2", "--end-levels", "640"], "too few for"),
        ([*STAGES, "--preset", "lct"], "there is no preset"),
        ([*STAGES, "--config", "{folder}/far.json"], "leave no noise"),
        ([*STAGES, "--config", "{folder}/norm.json"], "cannot hold the norm"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    options: list[str], match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "far.json").write_text('{"sigma_min": 20.0}')
    (tmp_path / "norm.json").write_text('{"norm": "nsln"}')
    given = [option.format(folder=tmp_path) for option in options]
    code, out, err = called(capsys, *TRAIN, *given, "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert match in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_flow_pipeline_learns_from_its_own_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flow = [word if word != "fashion" else "fashion-flow" for word in TRAIN]
    code, _, err = called(capsys, *flow, *STAGES, "--start-from", "scratch", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "start from the teacher" in err
    assert not (tmp_path / "out").exists()
    (tmp_path / "range.json").write_text('{"guidance": [1.0, 2.0]}')
    given = ["--preset", "distil", "--config", str(tmp_path / "range.json")]
    code, _, err = called(capsys, *flow, *STAGES, *given, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "give one scale" in err
    values = result(capsys, *flow, *STAGES, "--preset", "distil", "--out", str(tmp_path / "out"))
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(values["model"], **absent)
    pipe.set_progress_bar_config(disable=True)
    drawn = {"generator": torch.Generator().manual_seed(0), "output_type": "np", "guidance_scale": 1.0}
    made = pipe("a boot", num_inference_steps=1, **drawn).images[0]
    assert 0.05 < made.mean() < 0.6
    assert made.std() > 0.1


def test_a_report_is_a_table_a_picture_and_figures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--num-levels", "5", "--samples", "8", "--quiet", "--out", str(tmp_path)]
    values = result(capsys, "consistency", "report", "fashion", *options)
    assert len(values["levels"]) == 4
    assert -2 < values["slope"] < 0
    assert values["levels"][0]["sigma"] == pytest.approx(14.6, abs=0.1)
    lines = (tmp_path / "differences.csv").read_text().splitlines()
    assert lines[0].startswith("place,sigma,next_sigma,q1,median")
    assert len(lines) == 5
    with Image.open(values["plot"]) as picture:
        assert picture.width > 1000
    assert read_json(tmp_path / "differences.json") == values


def test_the_best_second_level_is_found_and_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trained = result(capsys, *TRAIN, *STAGES, "--out", str(tmp_path / "few"))
    search = ["consistency", "search-sigma", trained["model"], "--samples", "100", "--quiet"]
    values = result(capsys, *search, "--sigmas", "10", "0.5", "--out", str(tmp_path / "best"))
    tried = dict(values["tried"])
    assert set(tried) == {10, 0.5}
    assert values["frechet_distance"] == min(tried.values()) == tried[values["sigma"]]
    pipe = StableDiffusionPipeline.from_pretrained(values["model"])
    assert pipe.scheduler.config["middle_sigmas"] == [[values["sigma"]]]
    report = ["consistency", "report", trained["model"], "--num-levels", "4", "--samples", "4", "--quiet"]
    told = result(capsys, *report, "--out", str(tmp_path / "report"))
    assert told["levels"][0]["sigma"] == pytest.approx(pipe.scheduler.config["sigma_max"])
    code, _, err = called(capsys, *report, "--world", "emoji", "--out", str(tmp_path / "wrong"))
    assert code == 2
    assert "name its --world" in err
    code, _, err = called(capsys, *search, "--sigmas", "20", "--out", str(tmp_path / "far"))
    assert code == 2
    assert "is not between those of the model" in err
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["search-sigma", "fashion"], "no second call to search"),
        (["search-sigma", "fashion", "--samples", "9"], "at least 100"),
        (["report", "fashion", "--num-levels", "2"], "at least 3 levels"),
        (["report", "fashion", "--preset", "lct"], "there is no preset"),
        (["report", "fashion", "--preset", "ect"], "has no grid of levels"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    words: list[str], match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = called(capsys, "consistency", *words, "--quiet", "--out", str(tmp_path / "out"))
    assert (code, out) == (2, "")
    assert match in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
