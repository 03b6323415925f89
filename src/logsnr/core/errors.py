"""Errors that a user can act on: each message says what is wrong, why, and what to do."""

from __future__ import annotations


class LogsnrError(Exception):
    """Anything that logsnr refuses or cannot do; the command line prints it as one line and exits with 2."""


class InputError(LogsnrError, ValueError):
    """An argument, option or file given by the user is unusable."""


class MissingError(LogsnrError, FileNotFoundError):
    """A model, data set, file or package that is needed is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BrokenError(LogsnrError, OSError):
    """A file or folder is there but damaged, incomplete or of another kind."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DivergedError(LogsnrError, FloatingPointError):
    """Training left the finite numbers."""


class UnsupportedError(LogsnrError, NotImplementedError):
    """A model or option that is valid but outside what logsnr can do."""
