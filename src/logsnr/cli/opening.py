"""How the command line names who can open a key, and opens one: by identity or passphrase, never as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logsnr.cli.console import Console
from logsnr.core.errors import InputError

if TYPE_CHECKING:
    from logsnr.hiding.keyfile import KeyFile
    from logsnr.hiding.lock import Secret


@dataclass(frozen=True, kw_only=True)
class Opening(Console):
    """Options of every verb that opens a key."""

    identity: Path | None = None
    """A file with the identity that opens a key: of `key new-identity`, age-keygen or ssh-keygen."""
    passphrase_file: Path | None = None
    """A file whose first line is the passphrase, of the key or of a sealed identity; else LOGSNR_PASSPHRASE is used, or
    it is asked for."""

    def secrets(self) -> dict[str, Any]:
        """What ``KeyFile.open`` takes: the identities in the file, or the passphrase."""
        from logsnr.hiding.lock import read_identities, read_passphrase

        if not self.identity:
            return {"passphrase": read_passphrase(self.passphrase_file, ask="Passphrase of the key: ")}
        asked: list[Secret] = []

        def passphrase() -> Secret:
            asked.append(read_passphrase(self.passphrase_file, ask="Passphrase of the identity: "))
            return asked[0]

        found = read_identities(self.identity, passphrase)
        if self.passphrase_file and not asked:
            raise InputError(f"{self.identity} is not sealed: say --identity or --passphrase-file, not both")
        return {"identities": found}

    def open(self, place: Path, *, trusted: str | None = None) -> KeyFile:
        """A key from its file, whose sidecar has to fit if there is one."""
        from logsnr.hiding.keyfile import KeyFile, read_key
        from logsnr.hiding.lock import open_sealed
        from logsnr.hiding.sidecar import Sidecar

        secrets, content, sidecar = self.secrets(), read_key(place), Sidecar.open(place)
        if sidecar is not None:
            sidecar.check(content, trusted)
        elif trusted is not None:
            raise InputError(f"{place} has no sidecar, so nobody has signed it: get it, or leave --signer out")
        return KeyFile.from_bytes(open_sealed(content, **secrets))


@dataclass(frozen=True, kw_only=True)
class Sealing(Console):
    """Options of every verb that writes a key."""

    recipient: tuple[str, ...] = ()
    """Who can open it: age1..., or public SSH keys."""
    passphrase_file: Path | None = None
    """A file whose first line is the passphrase that opens it, in place of recipients; else LOGSNR_PASSPHRASE is used,
    or it is asked for."""

    def openers(self) -> tuple[tuple[str, ...], Secret | None]:
        """Recipients that are some, or a passphrase."""
        from logsnr.hiding.lock import check_recipients, read_passphrase

        if self.recipient and self.passphrase_file:
            raise InputError("say --recipient or --passphrase-file, not both: age opens by one kind")
        if self.recipient:
            check_recipients(self.recipient)
            return self.recipient, None
        return (), read_passphrase(self.passphrase_file, ask="Passphrase for the key: ", twice=True)
