"""The command line: one verb a file, errors as one line, exit codes 0, 2 and 130."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from typing import Annotated, Any, TextIO

import tyro

from logsnr.cli.access import Access
from logsnr.cli.attack import Attack
from logsnr.cli.calibrate import Calibrate
from logsnr.cli.consistency import Consistency
from logsnr.cli.continual import Continual
from logsnr.cli.demo import Demo
from logsnr.cli.doctor import Doctor
from logsnr.cli.erase import Erase
from logsnr.cli.evaluate import Evaluate
from logsnr.cli.explain import Explain
from logsnr.cli.hide import Hide
from logsnr.cli.information import Information
from logsnr.cli.key import Key
from logsnr.cli.sample import Reveal, Sample
from logsnr.cli.serve import Serve
from logsnr.cli.train import Train
from logsnr.core.errors import LogsnrError

_subcommand = tyro.conf.subcommand
Verb = (
    Annotated[Sample, _subcommand("sample")]
    | Annotated[Explain, _subcommand("explain")]
    | Annotated[Information, _subcommand("information")]
    | Annotated[Calibrate, _subcommand("calibrate")]
    | Annotated[Train, _subcommand("train")]
    | Annotated[Consistency, _subcommand("consistency")]
    | Annotated[Continual, _subcommand("continual")]
    | Annotated[Erase, _subcommand("erase")]
    | Annotated[Hide, _subcommand("hide")]
    | Annotated[Reveal, _subcommand("reveal")]
    | Annotated[Key, _subcommand("key")]
    | Annotated[Evaluate, _subcommand("evaluate")]
    | Annotated[Attack, _subcommand("attack")]
    | Annotated[Serve, _subcommand("serve")]
    | Annotated[Access, _subcommand("access")]
    | Annotated[Demo, _subcommand("demo")]
    | Annotated[Doctor, _subcommand("doctor")]
)


def parse(argv: list[str]) -> Any:
    """The verb with its options.

    Raises:
        SystemExit: help was asked for (0), or the usage is wrong (2, one line on stderr).
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(Verb, prog="logsnr", description=_ABOUT, args=argv)  # type: ignore[arg-type]
    except SystemExit as ended:
        if ended.code:
            print(f"logsnr: {_one_line(printed.getvalue())}", file=sys.stderr)
        raise


_ABOUT = "Sample diffusion models better, make them fast, and edit what they know. Every verb has --help."


def _one_line(message: str) -> str:
    """Tyro's boxed explanation as one line, without the name that it has for where a value stands."""
    words = re.sub(r"[│╭╮╰╯─┃━╴╶]+|-{3,}", " ", message).split()
    line = re.sub(r"^Value error Error parsing \S+ ", "", " ".join(words))
    return line or "the options cannot be read; see logsnr --help"


def quiet_libraries() -> None:
    """Keep the notices and loading bars of libraries off stderr, unless the user asked for them by these variables."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one line, without the place in the code that Python adds."""
    print(f"logsnr: warning: {message}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    quiet_libraries()
    try:
        verb = parse(sys.argv[1:] if argv is None else argv)
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return verb.run()
    except SystemExit as ended:
        return int(ended.code or 0)
    except LogsnrError as error:
        print(f"logsnr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("logsnr: interrupted", file=sys.stderr)
        return 130
