"""Training in processes of its own: killed and resumed, and on two processes against one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from logsnr.core.artifact import load_tensors
from logsnr.train.trackers import read_log

SCRIPT = Path(__file__).parent.parent / "run_tiny.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0", "CUDA_VISIBLE_DEVICES": ""}


def command(out: Path, *flags: str, accumulation: int = 1) -> list[str]:
    return [str(SCRIPT), str(out), "60", "8", str(accumulation), *flags]


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, env=ENVIRONMENT, timeout=300)


def kill_after(arguments: list[str], log: Path, step: int) -> None:
    """Start the run and send SIGKILL once the log has this step."""
    process = subprocess.Popen([sys.executable, *arguments], env=ENVIRONMENT, start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while (read_log(log) or [{"step": 0}])[-1]["step"] < step:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    run(command(tmp_path / "whole", "--dropout"))
    parts = tmp_path / "parts"
    kill_after(command(parts, "--dropout", "--slow"), parts / "log.jsonl", 7)
    kill_after(command(parts, "--dropout", "--slow", "--resume"), parts / "log.jsonl", 30)
    assert not (parts / "tiny.safetensors").exists()
    run(command(parts, "--dropout", "--resume"))
    whole, resumed = (load_tensors(tmp_path / name / "tiny.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [e["loss"] for e in read_log(tmp_path / "whole" / "log.jsonl")] == [
        e["loss"] for e in read_log(parts / "log.jsonl")
    ]


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def assert_same_run(one: Path, two: Path) -> None:
    logs = [read_log(path / "log.jsonl") for path in (one, two)]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    for first, second in zip(*logs, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_follow_one(tmp_path: Path, accumulation: int) -> None:
    run(command(tmp_path / "one"))
    run([*LAUNCH, *command(tmp_path / "two", accumulation=accumulation)])
    assert (tmp_path / "one" / "processes.txt").read_text() == "1"
    assert (tmp_path / "two" / "processes.txt").read_text() == "2"
    assert_same_run(tmp_path / "one", tmp_path / "two")
    a, b = (load_tensors(tmp_path / name / "tiny.safetensors") for name in ("one", "two"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-5)


def test_the_command_trains_a_stage_on_two_processes(tmp_path: Path) -> None:
    verb = [
        "-m",
        "logsnr",
        "train",
        "fashion",
        "--stages",
        "judge",
        "--steps",
        "20",
        "--batch-size",
        "8",
        "--cpu",
        "--quiet",
    ]
    run([*verb, "--out", str(tmp_path / "one")])
    run([*LAUNCH, *verb, "--out", str(tmp_path / "two")])
    assert_same_run(tmp_path / "one" / "work" / "judge", tmp_path / "two" / "work" / "judge")
    assert (tmp_path / "two" / "judge" / "config.json").exists()


def test_two_processes_keep_the_stages_of_a_finished_world(tmp_path: Path) -> None:
    verb = ["-m", "logsnr", "train", "fashion", "--stages", "judge", "--start-from", "fashion", "--cpu", "--quiet"]
    run([*LAUNCH, *verb, "--out", str(tmp_path / "leg")])
    assert sorted(path.name for path in (tmp_path / "leg").iterdir()) == ["autoencoder", "judge", "judge_second"]


def test_accelerate_launch_runs_the_same_script(tmp_path: Path) -> None:
    """``accelerate launch --cpu`` starts one process where there is no MPI; the script must not care."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    run([*launch, *command(tmp_path / "launched")])
    run(command(tmp_path / "one"))
    assert_same_run(tmp_path / "one", tmp_path / "launched")
