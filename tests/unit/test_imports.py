"""The package, its configurations and the command line's help start without heavy libraries."""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "matplotlib", "scipy")
CONFIGS = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in (SOURCE / "logsnr").rglob("config.py")
)
REPORT = f"import json, sys; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]), file=sys.stderr)"
HELP = f"""
import runpy, sys
sys.argv = ["logsnr", "--help"]
try:
    runpy.run_module("logsnr", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
{REPORT}
"""


def heavy_after(code: str) -> list[str]:
    """Which heavy libraries a fresh interpreter has imported after running the code."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stderr.splitlines()[-1])


def processor_seconds(command: list[str]) -> float:
    """Processor time of a command: on an idle machine the time that a person waits, on a busy one the same."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_package_imports_nothing_heavy() -> None:
    assert heavy_after(f"import logsnr\n{REPORT}") == []


def test_the_report_sees_what_is_imported() -> None:
    assert heavy_after(f"import sys; sys.modules['scipy'] = sys\n{REPORT}") == ["scipy"]


@pytest.mark.parametrize("module", CONFIGS)
def test_a_configuration_imports_nothing_heavy(module: str) -> None:
    assert heavy_after(f"import {module}\n{REPORT}") == []


def test_configurations_are_found() -> None:
    assert "logsnr.train.config" in CONFIGS


def test_help_imports_nothing_heavy() -> None:
    assert heavy_after(HELP) == []


def test_help_answers_within_a_second() -> None:
    command = [sys.executable, "-m", "logsnr", "--help"]
    assert min(processor_seconds(command) for _ in range(3)) < 1


def test_help_names_the_program_and_the_verbs() -> None:
    result = subprocess.run([sys.executable, "-m", "logsnr", "--help"], capture_output=True, text=True, check=True)
    assert "logsnr" in result.stdout
    assert "train" in result.stdout


def test_torchvision_is_not_installed() -> None:
    assert importlib.util.find_spec("torchvision") is None
