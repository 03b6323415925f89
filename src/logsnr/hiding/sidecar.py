"""What stands beside a key file in clear: who can open it, which file and model it is, signed by who issued it.

A key opens without its sidecar; with one, a wrong hash or signature is refused. A signature says that the sidecar is of
whoever has the signing key. Which public key that should be, the reader has to know: give it, or anyone's will do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from logsnr.core.artifact import write_json
from logsnr.core.config import from_dict
from logsnr.hiding.errors import KeyFormatError, TamperedKeyError
from logsnr.hiding.keyfile import KeyFile
from logsnr.hiding.lock import Secret
from logsnr.hiding.signing import is_signed, public_half, signed

VERSION = 1


@dataclass(frozen=True)
class Sidecar:
    """``recipients`` are the owner's list: the public key of everyone who can open the file, by a label."""

    key_id: str
    model: str
    sha256: str
    recipients: dict[str, str] = field(default_factory=dict)
    concepts: tuple[str, ...] = ()
    signer: str | None = None
    signature: str | None = None
    version: int = VERSION

    def signed(self, signing_key: Secret) -> Sidecar:
        """The same with a signature over all of it."""
        signer = public_half(signing_key)
        content = {**asdict(self), "signer": signer, "signature": None}
        return replace(self, signer=signer, signature=signed(_canonical(content), signing_key))

    def check(self, content: bytes, trusted: str | None = None) -> None:
        """Refuse a key file that is not the one meant, and a sidecar that was changed, or signed by another.

        Raises:
            TamperedKeyError: as said.
        """
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise TamperedKeyError("the key file is not the one that its sidecar describes: get both again")
        if trusted is not None and self.signer != trusted:
            raise TamperedKeyError("the sidecar is not signed by the key that is trusted: do not use this key file")
        if self.signer is None and self.signature is None:
            return
        if not is_signed(_canonical({**asdict(self), "signature": None}), self.signer, self.signature):
            raise TamperedKeyError("the sidecar was changed after it was signed: do not use this key file")

    def save(self, key: Path) -> None:
        """Write it beside a key file."""
        write_json(beside(key), asdict(self))

    @classmethod
    def open(cls, key: Path) -> Sidecar | None:
        """The sidecar of a key file, if there is one.

        Raises:
            KeyFormatError: it cannot be read.
        """
        place = beside(key)
        if not place.is_file():
            return None
        try:
            made = from_dict(cls, json.loads(place.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError):
            raise KeyFormatError(f"{place} is no sidecar of a key: remove it, or get it again") from None
        if made.version != VERSION:
            raise KeyFormatError(f"{place} has version {made.version!s:.20}, and {VERSION} is known")
        return made


def describe(key: KeyFile, content: bytes, recipients: Mapping[str, str], *, public_names: bool = False) -> Sidecar:
    """The sidecar of a key as it was sealed; it names the concepts only if that is wanted."""
    return Sidecar(
        key_id=key.record.key_id,
        model=key.record.models[0],
        sha256=hashlib.sha256(content).hexdigest(),
        recipients=dict(recipients),
        concepts=key.record.concepts if public_names else (),
    )


def beside(key: Path) -> Path:
    """Where the sidecar of a key file stands."""
    return key.with_name(key.name + ".json")


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
