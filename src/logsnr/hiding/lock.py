"""Who can open a key file: recipients of age (X25519, SSH) or a passphrase, and secrets that do not show themselves."""

from __future__ import annotations

import getpass
import os
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from logsnr.core.errors import InputError, MissingError
from logsnr.hiding.errors import KeyFormatError, TamperedKeyError, WrongKeyError

MOST_WORK = 22
"""The largest work factor (a power of two) that is tried: 19 takes about 2 s, 22 about 16."""
MOST_BYTES = 64 * 2**20
"""Bytes of a key at most."""
_START = b"age-encryption.org/v1\n"


class Secret:
    """A text that neither prints, compares nor pickles; ``reveal`` is where it leaves."""

    __slots__ = ("_text",)

    def __init__(self, text: str):
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    __str__ = __repr__

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared")

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


def read_passphrase(
    file: Path | None = None, *, variable: str = "LOGSNR_PASSPHRASE", ask: str = "", twice: bool = False
) -> Secret:
    """A passphrase from the first line of a file, else from the environment, else asked for at the terminal.

    Raises:
        MissingError: there is none of these.
        InputError: it is empty, or typed otherwise the second time.
    """
    if file is not None:
        if not file.is_file():
            raise MissingError(f"there is no passphrase file {file}: write the passphrase into its first line")
        text = file.read_text(encoding="utf-8").split("\n", 1)[0].rstrip("\r")
    elif variable in os.environ:
        text = os.environ[variable]
    elif ask:
        again = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", getpass.GetPassWarning)  # it would be shown while it is typed
                text = getpass.getpass(ask)
                again = getpass.getpass("The same again: ") if twice else text
        except (EOFError, OSError, getpass.GetPassWarning):
            raise MissingError(
                f"no terminal to ask for a passphrase: give --passphrase-file FILE, or set {variable}"
            ) from None
        if again != text:
            raise InputError("the two passphrases differ: try again")
    else:
        raise MissingError(f"a passphrase is needed: give --passphrase-file FILE, or set {variable}")
    if not text:
        raise InputError("the passphrase is empty: choose one of several words")
    return Secret(text)


def new_identity() -> tuple[Secret, str]:
    """A fresh identity of age, and the recipient that others encrypt to."""
    identity = _pyrage().x25519.Identity.generate()
    return Secret(str(identity)), str(identity.to_public())


def read_identities(path: Path, passphrase: Callable[[], Secret] | None = None) -> list[Secret]:
    """The identities in a file as `age-keygen` writes it, or in one private SSH key.

    ``passphrase`` is called for one if the file is sealed, an age file itself.

    Raises:
        MissingError: there is no such file.
        InputError: it holds none, or is sealed and no passphrase can be asked for.
        ConceptKeyError: it is sealed and does not open.
    """
    if not path.is_file():
        raise MissingError(f"there is no identity file {path}: `logsnr key new-identity` makes one")
    content = path.read_bytes()
    if content.startswith(_START):
        if passphrase is None:
            raise InputError(f"{path} is sealed by a passphrase: give it")
        content = open_sealed(content, passphrase=passphrase())
    text = content.decode(errors="replace")
    if text.startswith("-----BEGIN"):
        return [Secret(text)]
    lines = [line.strip() for line in text.splitlines()]
    found = [Secret(line) for line in lines if line.startswith("AGE-SECRET-KEY-1")]
    if not found:
        raise InputError(f"{path} holds no identity: give what age-keygen, ssh-keygen or logsnr key new-identity made")
    return found


def seal(content: bytes, recipients: Sequence[str] = (), passphrase: Secret | None = None) -> bytes:
    """The content as an age file for all of these recipients, or for one passphrase.

    Raises:
        InputError: neither or both are given, or a recipient is none.
    """
    age = _pyrage()
    if bool(recipients) == (passphrase is not None):
        raise InputError("say who can open the key: recipients (age1..., ssh-...), or one passphrase, not both")
    if passphrase is not None:
        return age.passphrase.encrypt(content, passphrase.reveal())
    return age.encrypt(content, [_recipient(text) for text in recipients])


def check_recipients(texts: Sequence[str]) -> None:
    """Refuse what nobody could open, before any work is done.

    Raises:
        InputError: one of them is no recipient.
    """
    for text in texts:
        _recipient(text)


def open_sealed(
    content: bytes, identities: Sequence[Secret] = (), passphrase: Secret | None = None, *, most: int | None = None
) -> bytes:
    """What is inside an age file of at most so many bytes.

    Raises:
        KeyFormatError: it is no age file, far too large, or asks for absurd work.
        WrongKeyError: what was given does not open it, or its header is damaged.
        TamperedKeyError: its body is damaged.
    """
    _check_header(content, passphrase is not None, most or 2 * MOST_BYTES)
    age = _pyrage()
    try:
        if passphrase is not None:
            return age.passphrase.decrypt(content, passphrase.reveal())
        return age.decrypt(content, [_identity(secret) for secret in identities])
    except age.DecryptError as error:  # one kind for all, told apart by rage's own words
        reason = str(error)
    if reason in ("No matching keys found", "Decryption failed"):
        raise WrongKeyError(
            "this key file does not open: the identity or passphrase is another one, or the file's header is damaged"
        )
    raise TamperedKeyError("the key file was changed or cut after it was made: get it again from who issued it")


def _check_header(content: bytes, by_passphrase: bool, most: int) -> None:
    """Refuse what is no age file of a sensible size and work factor, before any of the work is done."""
    if len(content) > most:
        raise KeyFormatError(f"the file has {len(content):,} bytes: key files have at most {MOST_BYTES:,}")
    if not content.startswith(_START):
        raise KeyFormatError("this is no key file: age files begin with their version, age-encryption.org/v1")
    header = content[: content.find(b"\n---")].decode("latin-1")
    work = re.search(r"^-> scrypt \S+ (\S+)$", header, re.MULTILINE)
    if work and not re.fullmatch(r"[1-9][0-9]?", work[1]):
        raise KeyFormatError("the key file's work factor is no number: it is damaged")
    if work and int(work[1]) > MOST_WORK:
        raise KeyFormatError(f"the key file asks for 2^{work[1]} rounds of work: at most 2^{MOST_WORK} are done")
    if by_passphrase != bool(work):
        given, wanted = ("a passphrase", "an identity") if by_passphrase else ("an identity", "a passphrase")
        raise WrongKeyError(f"this key file opens with {wanted}, and {given} was given")


def _recipient(text: str) -> Any:
    age = _pyrage()
    try:
        return (age.ssh if text.startswith("ssh-") else age.x25519).Recipient.from_str(text.strip())
    except Exception:
        raise InputError(f"{text[:12]!r}... is no recipient: give age1..., or a public SSH key") from None


def _identity(secret: Secret) -> Any:
    age, text = _pyrage(), secret.reveal()
    try:
        if text.startswith("-----BEGIN"):
            return age.ssh.Identity.from_buffer(text.encode())
        return age.x25519.Identity.from_str(text)
    except Exception:
        raise InputError("an identity cannot be read: give what age-keygen, ssh-keygen or logsnr made") from None


def _pyrage() -> Any:
    try:
        import pyrage
    except ModuleNotFoundError as error:
        raise MissingError("key files need pyrage, which is not installed: pip install 'logsnr[hide]'") from error
    return pyrage
