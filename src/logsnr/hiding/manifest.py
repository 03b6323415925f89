"""What stands beside a public model: the hash of each of its files, signed by who published it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from logsnr.core.artifact import write_file
from logsnr.core.config import from_dict
from logsnr.hiding.errors import KeyFormatError, TamperedKeyError
from logsnr.hiding.lock import Secret
from logsnr.hiding.signing import is_signed, public_half, signed

VERSION = 1
NAME, SIGNATURE = "manifest.json", "manifest.sig"


@dataclass(frozen=True)
class Manifest:
    """``files`` are the SHA-256 of every file of a folder; nothing tells what is hidden, or that anything is."""

    files: dict[str, str]
    signer: str | None = None
    version: int = VERSION

    @classmethod
    def of(cls, folder: Path, signer: str | None = None) -> Manifest:
        """That of a folder as it is."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({path.relative_to(folder).as_posix(): _hash(path) for path in paths}, signer)

    def to_bytes(self) -> bytes:
        """What is written and signed."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


def write_manifest(folder: Path, signing_key: Secret | None = None) -> None:
    """Write ``manifest.json`` beside a folder, and with a signing key ``manifest.sig``, the signature of its bytes."""
    signer = public_half(signing_key) if signing_key else None
    content = Manifest.of(folder, signer).to_bytes()
    write_file(folder.parent / NAME, content)
    if signing_key:
        write_file(folder.parent / SIGNATURE, signed(content, signing_key) + "\n")


def check_manifest(folder: Path, trusted: str | None = None) -> bool:
    """Refuse a public folder that is not as its manifest says, or whose manifest is not as it was signed.

    Returns whether there is a manifest. ``trusted`` is the public key whose signature is asked for.

    Raises:
        TamperedKeyError: as said, or nobody that is trusted has signed it.
        KeyFormatError: the manifest cannot be read.
    """
    place = folder.parent / NAME
    if not place.is_file():
        if trusted is not None:
            raise TamperedKeyError(f"{folder} has no manifest, so nobody has signed it: get it, or leave --signer out")
        return False
    content = place.read_bytes()
    try:
        found = from_dict(Manifest, json.loads(content))
    except (ValueError, TypeError, RecursionError):
        raise KeyFormatError(f"{place} is no manifest of a model: get it again") from None
    if found.version != VERSION:
        raise KeyFormatError(f"{place} has version {found.version!s:.20}, and {VERSION} is known")
    if trusted is not None and found.signer != trusted:
        raise TamperedKeyError("the model is not signed by the key that is trusted: do not use it")
    signature = folder.parent / SIGNATURE
    if found.signer is not None or signature.is_file():
        told = signature.read_text(errors="replace").strip() if signature.is_file() else None
        if not is_signed(content, found.signer, told):
            raise TamperedKeyError("the model's manifest was changed after it was signed: get the model again")
    now = Manifest.of(folder).files
    if wrong := sorted(name for name in found.files.keys() | now.keys() if found.files.get(name) != now.get(name)):
        raise TamperedKeyError(f"the model is not the one that was published, {wrong[0]:.60} differs: get it again")
    return True


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
