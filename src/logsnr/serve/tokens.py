"""Tokens: 256 random bits behind a public prefix; the server keeps a hash, and shows a token once."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

_FORM = re.compile(r"lsnr_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True, repr=False)
class Token:
    """A token's public prefix and the hash of the whole; the text itself leaves by ``new_token`` alone."""

    prefix: str
    digest: str

    def __repr__(self) -> str:
        return f"Token({self.prefix})"

    def matches(self, digest: str | None) -> bool:
        """Whether it is the one of this hash, in a time that tells nothing; of None, nobody's."""
        return hmac.compare_digest(self.digest, digest or _NOBODY) and digest is not None


def new_token() -> tuple[str, Token]:
    """A fresh token's text, and what is kept of it."""
    text = f"lsnr_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    found = read_token(text)
    assert found
    return text, found


def read_token(text: str) -> Token | None:
    """What a text says that was given as a token, or None if it cannot be one."""
    found = _FORM.fullmatch(text)
    return Token(found[1], hashlib.sha256(text.encode()).hexdigest()) if found else None
