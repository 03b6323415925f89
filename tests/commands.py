"""A command called in this process, as tests of the command line do it."""

from __future__ import annotations

import json

import pytest

from logsnr.cli.main import main


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    capsys.readouterr()
    code = main(list(arguments))
    streams = capsys.readouterr()
    return code, streams.out, streams.err


def result(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """The JSON object of a command that succeeds, which is all that it prints."""
    code, out, err = called(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)
