"""``logsnr access``: who may use a server, and what it has written down, from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from logsnr.cli.console import Console
from logsnr.core.errors import BrokenError, InputError, MissingError

if TYPE_CHECKING:
    from logsnr.serve.store import Decision, Store

Action = Literal["add-key", "rotate", "revoke", "keys", "grant", "withdraw", "grants", "audit", "verify"]
Told = tuple[dict[str, Any], list[str]]


@dataclass(frozen=True, kw_only=True)
class Access(Console):
    """Who may use a server: keys, grants and the audit, in its database; what is revoked ends with the next request."""

    action: Annotated[Action, tyro.conf.Positional]
    """add-key, rotate and revoke a key; keys lists them; grant and withdraw a concept; grants lists them; audit prints
    the trail as JSONL; verify checks it."""
    db: Path
    """The server's database, with the key of its audit beside it."""
    key: str | None = None
    """rotate, revoke, grant: the key's id; withdraw: the grant's."""
    role: Literal["admin", "member", "auditor"] = "member"
    """add-key: what the key is for."""
    label: str = ""
    """add-key: whose it is."""
    concept: tuple[str, ...] = ()
    """add-key, grant: concepts that it unlocks."""
    not_after: str | None = None
    """add-key, grant: until when, as 2027-01-31T00:00:00+00:00."""
    token_file: Path | None = None
    """add-key, rotate: the file that the token is written to, for its owner alone."""
    anchor: str | None = None
    """verify: NUMBER:DIGEST that was noted elsewhere, so that a cut trail is seen."""

    def run(self) -> int:
        from sqlalchemy.exc import SQLAlchemyError

        from logsnr.serve.errors import RefusedError
        from logsnr.serve.store import Store

        if not self.db.is_file():
            raise MissingError(f"there is no database {self.db}: `logsnr serve` makes one")
        try:
            values, lines = getattr(self, f"_{self.action.replace('-', '_')}")(Store(self.db))
        except RefusedError as refusal:
            raise InputError(str(refusal)) from None
        except SQLAlchemyError as error:
            raise BrokenError(f"{self.db} cannot be used now ({type(error).__name__}): is it locked or full?") from None
        self.result(values, lines)
        return 0

    def _add_key(self, store: Store) -> Told:
        place = self._token_place()
        options = {"concepts": self.concept, "not_after": self._seconds(), "show": _writer(place)}
        return _told(store.add_key(self.role, self.label, by=_operator(), **options)[1], place)

    def _rotate(self, store: Store) -> Told:
        place = self._token_place()
        store.rotate(self._named(), by=_operator(), show=_writer(place))
        return _told(store.key(self._named()), place)

    def _token_place(self) -> Path:
        if self.token_file is None or self.token_file.exists():
            raise InputError("say --token-file FILE, one that is not there: the token is written to it, and not shown")
        return self.token_file

    def _revoke(self, store: Store) -> Told:
        store.revoke(self._named(), by=_operator())
        return {"revoked": self.key}, [f"key {self.key} is refused from now on"]

    def _keys(self, store: Store) -> Told:
        rows = store.keys()
        lines = [f"{r['id']}  {r['role']:8}  {'revoked' if r['revoked'] else 'in use':8}  {r['label']}" for r in rows]
        return {"keys": rows}, lines

    def _grant(self, store: Store) -> Told:
        if not self.concept:
            raise InputError("there is nothing to grant: say --concept")
        rows = [store.grant(self._named(), name, by=_operator(), not_after=self._seconds()) for name in self.concept]
        return {"grants": rows}, [f"grant {row['id']}: {row['concept']}" for row in rows]

    def _withdraw(self, store: Store) -> Told:
        store.withdraw(self._named(), by=_operator())
        return {"withdrawn": self.key}, [f"grant {self.key} unlocks nothing from now on"]

    def _grants(self, store: Store) -> Told:
        rows = store.grants()
        states = ["withdrawn" if row["revoked"] else "in force " for row in rows]
        lines = [f"{r['id']}  {r['key']}  {state}  {r['concept']}" for r, state in zip(rows, states, strict=True)]
        return {"grants": rows}, lines

    def _audit(self, store: Store) -> Told:
        lines = list(store.trail())
        return {"lines": lines}, [json.dumps(line, sort_keys=True) for line in lines]

    def _verify(self, store: Store) -> Told:
        anchor = None
        if self.anchor:
            number, _, digest = self.anchor.partition(":")
            if not number.isdigit() or not digest:
                raise InputError("an anchor is NUMBER:DIGEST, as verify prints it")
            anchor = int(number), digest
        wrong = store.verify(anchor)
        if wrong is not None:
            raise BrokenError(f"line {wrong} of the audit is missing or changed: trust none from there on")
        number, digest = store.head()
        line = f"{number} lines are as they were written; note {number}:{digest} elsewhere"
        return {"lines": number, "digest": digest}, [line]

    def _named(self) -> str:
        if not self.key:
            raise InputError(f"{self.action} needs --key ID, as `access keys` and `access grants` list them")
        return self.key

    def _seconds(self) -> float | None:
        from logsnr.core.moment import later

        return None if self.not_after is None else later(self.not_after, time.time())


def _told(row: dict[str, Any], place: Path) -> Told:
    return {**row, "token_file": str(place)}, [f"key {row['id']}, {row['role']}: its token is in {place}"]


def _writer(place: Path) -> Callable[[str], None]:
    """Writes a token for the eyes of its owner, before it is in force."""
    from logsnr.core.artifact import write_file

    return lambda token: write_file(place, token + "\n", private=True)


def _operator() -> Decision:
    """Who has the database's file may do all; the audit says that it was done there."""
    from logsnr.serve.store import Decision

    return Decision("command line")
