"""What can be wrong with a key; every message is one line that holds no secret."""

from __future__ import annotations

from logsnr.core.errors import LogsnrError


class ConceptKeyError(LogsnrError):
    """A key that does not open, or does not belong here."""


class WrongKeyError(ConceptKeyError):
    """No identity or passphrase that was given opens the file; or its header is damaged, which cannot be told apart."""


class TamperedKeyError(ConceptKeyError):
    """The file, or the sidecar beside it, was changed after it was made."""


class KeyFormatError(ConceptKeyError):
    """The file is no key file, or one of a later version."""


class KeyShapeError(ConceptKeyError):
    """What is inside does not have the shape that it says."""


class KeyExpiredError(ConceptKeyError):
    """The key is not valid yet, or no longer."""


class ModelMismatchError(ConceptKeyError):
    """The key belongs to another model."""
