"""``logsnr continual`` on real digits: a run, its images, what it carries, a table of runs; bad input refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import called, result
from PIL import Image

RUN = ["continual", "run", "--quiet", "--options", "classifier_epochs=1", "generator_steps=3", "images_per_class=2"]
RUN += ["sampling_steps=2", "generator_batch=8", "channels=[16,16]", "token_width=64"]


def test_a_run_is_sampled_inspected_and_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = result(capsys, *RUN, "--num-experiences", "2", "--out", str(tmp_path / "gppdm"))
    assert [len(row) for row in values["accuracy_matrix"]] == [1, 2]
    assert values["task_il"]["final_accuracy"] >= values["final_accuracy"]
    weights = tmp_path / "gppdm" / "experience-1" / "unet" / "diffusion_pytorch_model.safetensors"
    told = values["experiences"][-1]["bytes"]
    assert 0 < weights.stat().st_size - told["generator"] < 50_000, "the file is its tensors and a header"
    assert values["bytes"] == sum(told.values())
    again = result(capsys, *RUN, "--num-experiences", "2", "--out", str(tmp_path / "gppdm"), "--resume")
    assert again["accuracy_matrix"] == values["accuracy_matrix"]
    last = str(tmp_path / "gppdm" / "experience-1")
    drawn = result(
        capsys, "continual", "sample", last, "--classes", "0", "7", "--per-class", "3", "--out", str(tmp_path / "drawn")
    )
    assert drawn["images"] == 6
    with Image.open(drawn["grid"]) as grid:
        assert grid.size == (3 * 16, 2 * 16)
    seen = result(capsys, "continual", "inspect", str(tmp_path / "gppdm"))
    kept, width = seen["directions"]["inputs"]
    assert width == 64
    assert 10 < kept <= 64
    measured = result(
        capsys, "continual", "compare", str(tmp_path / "gppdm"), "--replay-quality", "--per-class", "4",
        "--out", str(tmp_path / "compared"),
    )["replays"]  # fmt: skip
    rows = measured["runs"][str(tmp_path / "gppdm")]
    assert [(row["experience"], row["label"], row["age"]) for row in rows] == [
        *((0, label, 0) for label in range(5)),
        *((1, label, int(label < 5)) for label in range(10)),
    ]
    assert all(0 <= row["fidelity"] <= 1 and row["nearest_ratio"] > 1 for row in rows), "noise is far from all digits"
    assert abs(sum(row["real_kernel_distance"] for row in rows)) < sum(row["kernel_distance"] for row in rows)
    assert measured["judge_accuracy"] > 0.5
    assert (tmp_path / "compared" / "replays.png").is_file()
    result(capsys, *RUN, "--strategy", "finetune", "--num-experiences", "2", "--out", str(tmp_path / "finetune"))
    code, out, _ = called(capsys, "continual", "compare", str(tmp_path / "gppdm"), str(tmp_path / "finetune"))
    assert code == 0
    assert [line.split("|")[2].strip() for line in out.splitlines()[2:]] == ["gppdm", "finetune"]
    code, _, err = called(capsys, "continual", "compare", str(tmp_path / "finetune"), "--replay-quality")
    assert (code, "has no generator" in err) == (2, True)


def test_an_autoencoder_replays_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = [*RUN, "--strategy", "replay-vae", "--num-experiences", "2", "--out", str(tmp_path / "vae")]
    assert set(result(capsys, *run)["experiences"][-1]["bytes"]) == {"classifier", "generator"}
    last = ["continual", "sample", str(tmp_path / "vae" / "experience-1"), "--per-class", "2"]
    assert result(capsys, *last, "--out", str(tmp_path / "drawn"))["images"] == 20
    quality = ["continual", "compare", str(tmp_path / "vae"), "--replay-quality", "--per-class", "2"]
    assert (
        len(result(capsys, *quality, "--out", str(tmp_path / "seen"))["replays"]["runs"][str(tmp_path / "vae")]) == 15
    )


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([*RUN, "--num-experiences", "3"], "take a divisor"),
        ([*RUN, "--strategy", "cpdm"], "there is no strategy"),
        ([*RUN, "--strategy", "er-state"], "exemplars need bytes"),
        ([*RUN, "epochs"], "write it as NAME=VALUE"),
        ([*RUN, "epochs=3"], "epochs"),
        (["continual", "sample", "{folder}"], "holds no generator"),
        (["continual", "inspect", "{folder}"], "holds no experience"),
        (["continual", "compare", "{folder}"], "holds no finished run"),
        (["continual", "compare"], "nothing to compare"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    words: list[str], match: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [word.format(folder=tmp_path) for word in words]
    out = [] if given[1] in ("inspect", "compare") else ["--out", str(tmp_path / "out")]
    code, printed, err = called(capsys, *given, *out)
    assert (code, printed) == (2, "")
    assert match in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_begun_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    finetune = [*RUN, "--strategy", "finetune", "--num-experiences", "2", "--out", str(tmp_path)]
    result(capsys, *finetune)
    code, _, err = called(capsys, *finetune)
    assert code == 2
    assert "add --resume" in err
    code, _, err = called(capsys, *finetune, "--resume", "--seed", "3")
    assert code == 2
    assert "another stream or configuration" in err
