"""Ed25519 signatures: who issued a key file or a public model, by a key that readers have to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logsnr.core.artifact import write_file
from logsnr.core.errors import InputError, MissingError
from logsnr.hiding.lock import Secret


def new_signing_key(path: Path) -> str:
    """Write a fresh Ed25519 key for its owner alone, as PEM; the public key, by which others know the signature.

    Raises:
        InputError: the file is there already, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if path.exists():
        raise InputError(f"{path} is there already: choose another place")
    private = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_file(path, private.private_bytes(*form), private=True)
    return private.public_key().public_bytes_raw().hex()


def signed(content: bytes, signing_key: Secret) -> str:
    """The signature of a content, in hexadecimal digits."""
    return _private(signing_key).sign(content).hex()


def is_signed(content: bytes, signer: str | None, signature: str | None) -> bool:
    """Whether a content has this signature of this public key."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer or ""))
        public.verify(bytes.fromhex(signature or ""), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def public_half(signing_key: Secret) -> str:
    """The public key of a signing key."""
    return _private(signing_key).public_key().public_bytes_raw().hex()


def read_signing_key(path: Path) -> Secret:
    """A signing key from its file.

    Raises:
        MissingError: there is none.
        InputError: it is no Ed25519 key.
    """
    if not path.is_file():
        raise MissingError(f"there is no signing key {path}: `logsnr key new-signer` makes one")
    secret = Secret(path.read_text(encoding="utf-8", errors="replace"))
    _private(secret)
    return secret


def _private(secret: Secret) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = serialization.load_pem_private_key(secret.reveal().encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        private = None
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError("the signing key is no Ed25519 key in PEM: `logsnr key new-signer` makes one") from None
    return private
