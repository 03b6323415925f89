"""The help texts are under version control: LOGSNR_WRITE_GOLDEN=1 rewrites them, and the change is reviewed as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from logsnr.cli.main import main

GOLDEN = Path(__file__).parent.parent / "golden" / "help"
VERBS = (
    "",
    "sample",
    "explain",
    "serve",
    "access",
    "information",
    "calibrate",
    "train",
    "consistency",
    "consistency train",
    "consistency report",
    "consistency search-sigma",
    "continual",
    "continual run",
    "continual sample",
    "continual inspect",
    "continual compare",
    "erase",
    "hide",
    "reveal",
    "key",
    "evaluate",
    "attack",
    "demo",
    "doctor",
)


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_what_was_reviewed(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    assert main([*verb.split(), "--help"]) == 0
    text = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"
    path = GOLDEN / f"{_stem(verb)}.txt"
    if os.environ.get("LOGSNR_WRITE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "help changed: review it, then run with LOGSNR_WRITE_GOLDEN=1"


def test_every_verb_has_a_golden_text() -> None:
    named = {path.stem for path in GOLDEN.glob("*.txt")}
    assert named == {_stem(verb) for verb in VERBS}
    listed = (GOLDEN / "logsnr.txt").read_text()
    assert all(verb.split()[0] in listed for verb in VERBS if verb)


def _stem(verb: str) -> str:
    return verb.replace(" ", "-") or "logsnr"
