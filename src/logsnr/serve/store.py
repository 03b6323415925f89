"""Who may do what: tokens with a role, grants of concepts, and the one decision that each request gets.

A decision, what it spends and its line in the audit are one transaction: what cannot be written is not granted.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from sqlalchemy import Connection, Row, insert, select, update

from logsnr.serve import audit
from logsnr.serve.config import Limits
from logsnr.serve.database import GRANTS, KEYS, open_database, reading, sealing_key
from logsnr.serve.errors import RefusedError
from logsnr.serve.limits import DAY, add_failure, add_images, check_budget, check_failures, check_rate
from logsnr.serve.tokens import Token, new_token, read_token

Valid = Callable[[Sequence[str]], tuple[str, ...]]
Role = Literal["admin", "member", "auditor"]
ROLES: tuple[Role, ...] = ("admin", "member", "auditor")
"""admin: tokens and grants; member: images with the concepts that it is granted; auditor: the trail."""


@dataclass(frozen=True)
class Ask:
    """What a request asks for: with which token, from where, how many images, and which concepts."""

    request: str
    address: str
    token: str | None = None
    images: int = 0
    unlock: tuple[str, ...] | Literal["auto"] = ()
    told: dict[str, Any] = field(default_factory=dict)
    """What its line in the audit says besides."""


@dataclass(frozen=True)
class Decision:
    """What a request may do; what is not in it is denied."""

    request: str
    key: str | None = None
    role: Role | None = None
    concepts: tuple[str, ...] = ()
    images: int | None = None
    """How many it was made for; None: nobody has counted."""
    spent: tuple[str, int, int] | None = None
    """Whose budget, of which day, and how many images."""


class Store:
    """The database behind every worker; ``clock`` gives seconds since 1970."""

    def __init__(self, path: Path, limits: Limits | None = None, *, clock: Callable[[], float] = time.time):
        self.engine = open_database(path)
        with reading(self.engine) as connection:
            self.seal = sealing_key(path, new=audit.head(connection)[0] == 0)
        self.limits, self.clock, self._turn = limits or Limits(), clock, Lock()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction; those of one process wait for each other here, not by looking again and again."""
        with self._turn, self.engine.begin() as connection:
            yield connection

    # What the gate asks

    def decide(self, ask: Ask, valid: Valid = tuple) -> Decision | RefusedError:
        """The answer to a request, once it is written down; ``valid`` are those of concepts that have a key here."""
        if waiting := self._waits(ask):
            return waiting
        with self._writing() as connection:
            try:
                return replace(self._decide(connection, ask, valid), images=ask.images)
            except RefusedError as refusal:
                if refusal.blamed:
                    add_failure(connection, refusal.blamed, self.limits.failures, self.clock())
                    told = {"decision": refusal.code, "blamed": refusal.blamed, **ask.told, **_asked(ask)}
                    self._write(connection, ask.request, None, told)
                return refusal

    def _waits(self, ask: Ask) -> RefusedError | None:
        """The refusal of a bad token from where there were too many, which takes no lock and writes nothing."""
        if ask.token is None:
            return None
        with reading(self.engine) as connection:
            try:
                self._known(connection, ask, self.clock())
            except RefusedError as refusal:
                return refusal if refusal.status == 429 else None
        return None

    def undone(self, decision: Decision, status: int) -> None:
        """Write down that what was unlocked was not made, and give its images back."""
        with self._writing() as connection:
            if decision.concepts:
                told = {"decision": "not_made", "concepts": list(decision.concepts), "status": status}
                self._write(connection, decision.request, decision, told)
            if decision.spent:
                name, day, images = decision.spent
                add_images(connection, name, day, -images)

    def _decide(self, connection: Connection, ask: Ask, valid: Valid) -> Decision:
        now, limits = self.clock(), self.limits
        if ask.token is None:
            return self._anonymous(connection, ask, now)
        key = self._known(connection, ask, now)
        check_rate(connection, f"key {key.id}", limits.requests_per_minute, now)
        concepts = self._granted(connection, key, ask, now, valid)
        decision = Decision(ask.request, key.id, key.role, concepts)
        if not ask.images:
            return decision
        check_budget(connection, key.id, ask.images, key.images_per_day or limits.images_per_day, now)
        if concepts:
            told = {"decision": "unlocked", "concepts": list(concepts), **ask.told}
            self._write(connection, ask.request, decision, told)
        return replace(decision, spent=(key.id, int(now // DAY), ask.images))

    def _anonymous(self, connection: Connection, ask: Ask, now: float) -> Decision:
        name = f"address {ask.address}"
        if isinstance(ask.unlock, tuple) and ask.unlock:
            raise _failed(connection, name, now, 401, "token_needed", "concepts are unlocked with a token")
        if not ask.images:
            return Decision(ask.request)
        check_rate(connection, name, self.limits.anonymous_per_minute, now)
        check_budget(connection, name, ask.images, self.limits.images_per_day, now)
        return Decision(ask.request, spent=(name, int(now // DAY), ask.images))

    def _known(self, connection: Connection, ask: Ask, now: float) -> Row[Any]:
        """The token's row; whatever is wrong with it, the answer is the same."""
        token = read_token(ask.token or "") or Token("", "")
        row = connection.execute(select(KEYS).where(KEYS.c.prefix == token.prefix)).first()
        known = token.matches(row.digest if row else None)
        if not row or not known or row.revoked is not None or _over(row.not_after, now):
            line = "this token is not valid, or not any more"
            raise _failed(connection, f"address {ask.address}", now, 401, "bad_token", line)
        return row

    def _granted(self, connection: Connection, key: Row[Any], ask: Ask, now: float, valid: Valid) -> tuple[str, ...]:
        if not ask.unlock:
            return ()
        mine = self._concepts(connection, key.id, now)
        if ask.unlock == "auto":
            return valid(mine)
        wanted = tuple(dict.fromkeys(ask.unlock))
        if not set(wanted) <= set(mine):
            raise _failed(connection, f"key {key.id}", now, 403, "not_granted", "this token does not unlock that")
        return wanted

    def _concepts(self, connection: Connection, key: str, now: float) -> tuple[str, ...]:
        query = select(GRANTS.c.concept, GRANTS.c.not_after).where(GRANTS.c.key == key, GRANTS.c.revoked.is_(None))
        rows = connection.execute(query.order_by(GRANTS.c.concept))
        return tuple(dict.fromkeys(row.concept for row in rows if not _over(row.not_after, now)))

    # What administrators do

    def add_key(
        self,
        role: Role,
        label: str,
        *,
        by: Decision,
        concepts: tuple[str, ...] = (),
        images_per_day: int | None = None,
        not_after: float | None = None,
        show: Callable[[str], None] | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """A new token, shown here and never again, and its record; with grants, if it is a member's.

        ``show`` gets the token first: what it raises leaves no key behind.

        Raises:
            RefusedError: 400, the role is none, or has no grants.
        """
        if role not in ROLES:
            raise RefusedError(400, "role", f"there is no role {role!r:.20}: use {', '.join(ROLES)}", param="role")
        text, token = new_token()
        name = secrets.token_hex(8)
        row = {"id": name, "prefix": token.prefix, "digest": token.digest, "role": role, "label": label}
        row |= {"images_per_day": images_per_day, "created": self.clock(), "not_after": not_after}
        with self._writing() as connection:
            connection.execute(insert(KEYS).values(row))
            told = {"decision": "key_added", "subject": name, "subject_role": role, "label": label}
            self._write(connection, by.request, by, told)
            for concept in concepts:
                self._grant(connection, name, concept, not_after, by)
            if show:
                show(text)
        return text, self.key(name)

    def rotate(self, name: str, *, by: Decision, show: Callable[[str], None] | None = None) -> str:
        """A new token for the same key, first given to ``show``; the old one is refused from now on.

        Raises:
            RefusedError: 404, there is no such key in use.
        """
        text, token = new_token()
        with self._writing() as connection:
            self._in_use(connection, name)
            new = {"prefix": token.prefix, "digest": token.digest}
            connection.execute(update(KEYS).where(KEYS.c.id == name).values(new))
            self._write(connection, by.request, by, {"decision": "key_rotated", "subject": name})
            if show:
                show(text)
        return text

    def revoke(self, name: str, *, by: Decision) -> None:
        """From now on the key's token is refused.

        Raises:
            RefusedError: 404, there is no such key in use.
        """
        with self._writing() as connection:
            self._in_use(connection, name)
            connection.execute(update(KEYS).where(KEYS.c.id == name).values(revoked=self.clock()))
            self._write(connection, by.request, by, {"decision": "key_revoked", "subject": name})

    def grant(self, key: str, concept: str, *, by: Decision, not_after: float | None = None) -> dict[str, Any]:
        """Let a member's key unlock a concept, perhaps until a moment.

        Raises:
            RefusedError: 404, there is no such key in use; 400, it is no member's.
        """
        with self._writing() as connection:
            name = self._grant(connection, key, concept, not_after, by)
        return next(row for row in self.grants() if row["id"] == name)

    def _grant(self, connection: Connection, key: str, concept: str, not_after: float | None, by: Decision) -> str:
        if self._in_use(connection, key).role != "member":
            raise RefusedError(400, "role", "concepts are granted to members", param="key")
        row = {"id": secrets.token_hex(8), "key": key, "concept": concept, "created": self.clock()}
        connection.execute(insert(GRANTS).values({**row, "not_after": not_after}))
        self._write(connection, by.request, by, {"decision": "granted", "subject": key, "concepts": [concept]})
        return str(row["id"])

    def withdraw(self, name: str, *, by: Decision) -> None:
        """From now on a grant unlocks nothing.

        Raises:
            RefusedError: 404, there is no such grant in force.
        """
        with self._writing() as connection:
            row = connection.execute(select(GRANTS).where(GRANTS.c.id == name, GRANTS.c.revoked.is_(None))).first()
            if row is None:
                raise RefusedError(404, "no_grant", "there is no such grant in force")
            connection.execute(update(GRANTS).where(GRANTS.c.id == name).values(revoked=self.clock()))
            told = {"decision": "withdrawn", "subject": row.key, "concepts": [row.concept]}
            self._write(connection, by.request, by, told)

    def _in_use(self, connection: Connection, name: str) -> Row[Any]:
        row = connection.execute(select(KEYS).where(KEYS.c.id == name, KEYS.c.revoked.is_(None))).first()
        if row is None:
            raise RefusedError(404, "no_key", "there is no such key in use")
        return row

    # What can be read

    def keys(self) -> list[dict[str, Any]]:
        """All keys, without their tokens."""
        with reading(self.engine) as connection:
            return [_shown(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created))]

    def key(self, name: str) -> dict[str, Any]:
        """One of them."""
        return next(row for row in self.keys() if row["id"] == name)

    def grants(self) -> list[dict[str, Any]]:
        """All grants, those withdrawn among them."""
        with reading(self.engine) as connection:
            return [_shown(row) for row in connection.execute(select(GRANTS).order_by(GRANTS.c.created))]

    def concepts(self, decision: Decision) -> tuple[str, ...]:
        """What the key of a decision unlocks now."""
        with reading(self.engine) as connection:
            return self._concepts(connection, decision.key or "", self.clock())

    def trail(self, *, after: int = 0, limit: int | None = None) -> Iterator[audit.Line]:
        """The lines of the audit behind a number."""
        with reading(self.engine) as connection, closing(audit.lines(connection, after=after, limit=limit)) as found:
            yield from found

    def head(self) -> tuple[int, str]:
        """Number and digest of the audit's last line: what is worth noting elsewhere."""
        with reading(self.engine) as connection:
            return audit.head(connection)

    def verify(self, anchor: tuple[int, str] | None = None) -> int | None:
        """The number of the first line of the audit that is not as it was written, or None."""
        return audit.verify(self.trail(), self.seal, anchor)

    def hashed(self, text: str) -> str:
        """A text's hash by the seal's key: the same text is recognised, and guesses cannot be tried without it."""
        return hmac.digest(self.seal, f"text {text}".encode("utf-8", "surrogatepass"), "sha256").hex()

    def first_admin(self, show: Callable[[str], None] | None = None) -> str | None:
        """The first administrator's token, where no key in use is one's, first given to ``show``; else None."""
        if any(row["role"] == "admin" and not row["revoked"] for row in self.keys()):
            return None
        return self.add_key("admin", "first", by=Decision("start"), show=show)[0]

    def _write(self, connection: Connection, request: str, by: Decision | None, told: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")
        who = {"key": by.key, "role": by.role} if by else {}
        audit.append(connection, self.seal, {"time": moment, "request": request, **who, **told})


def _failed(connection: Connection, blamed: str, now: float, status: int, code: str, line: str) -> RefusedError:
    """The refusal of a failure, or where there were too many of them, that one.

    A valid token is not held up by what others do at its address, nor what it may unlock by what it may not.
    """
    check_failures(connection, blamed, now)
    return RefusedError(status, code, line, param="unlock" if status == 403 else None, blamed=blamed)


def _over(not_after: float | None, now: float) -> bool:
    return not_after is not None and not_after < now


def _asked(ask: Ask) -> dict[str, Any]:
    """Of a refused request: the concepts, and the token's public half."""
    token = read_token(ask.token) if ask.token else None
    return {"concepts": list(ask.unlock) if ask.unlock != "auto" else ["auto"], "prefix": token and token.prefix}


def _shown(row: Row[Any]) -> dict[str, Any]:
    found = {str(name): value for name, value in row._mapping.items() if name != "digest"}
    return {name: _moment(value) if name in _MOMENTS else value for name, value in found.items()}


_MOMENTS = ("created", "not_after", "revoked")


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
