"""The audit: every line carries the hash of the one before it, and a seal that nobody makes without the key.

    digest_n = SHA-256(digest_{n-1} | event_n),   seal_n = HMAC-SHA-256(key, digest_n)

A changed, moved or missing line breaks the chain from there on. A cut tail does not: keep the last number and digest
elsewhere, and give them to ``verify``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Generator, Iterable
from typing import Any

from sqlalchemy import Connection, insert, select

from logsnr.serve.database import AUDIT

Line = dict[str, Any]
START = "0" * 64


def append(connection: Connection, key: bytes, event: Line) -> None:
    """Add a line, in the transaction of what it tells of."""
    number, digest = head(connection)
    text = json.dumps(event, sort_keys=True, separators=(",", ":"))
    digest = _digest(digest, text)
    row = {"number": number + 1, "event": text, "digest": digest, "seal": _seal(key, digest)}
    connection.execute(insert(AUDIT).values(row))


def head(connection: Connection) -> tuple[int, str]:
    """Number and digest of the last line; 0 and zeros where there is none."""
    row = connection.execute(select(AUDIT.c.number, AUDIT.c.digest).order_by(AUDIT.c.number.desc()).limit(1)).first()
    return (row.number, row.digest) if row else (0, START)


def lines(connection: Connection, *, after: int = 0, limit: int | None = None) -> Generator[Line, None, None]:
    """The lines behind a number, as the export has them: one JSON object each."""
    query = select(AUDIT).where(AUDIT.c.number > after).order_by(AUDIT.c.number).limit(limit)
    for row in connection.execute(query):
        yield {"number": row.number, "event": _parsed(row.event), "digest": row.digest, "seal": row.seal}


def _parsed(text: Any) -> Any:
    """An event; what is none, for somebody has changed it, stays as it is, and does not verify."""
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return str(text)


def verify(found: Iterable[Line], key: bytes, anchor: tuple[int, str] | None = None) -> int | None:
    """The number of the first line that is not as it was written, or None: all of them are.

    ``anchor`` is a number and digest that were noted elsewhere; a trail that does not reach it is cut there.
    """
    digest, number = START, 0
    for number, line in enumerate(found, 1):
        text = json.dumps(line["event"], sort_keys=True, separators=(",", ":"))
        digest = _digest(digest, text)
        sound = line["number"] == number and _same(line["digest"], digest)
        if not sound or not _same(line["seal"], _seal(key, digest)):
            return number
        if anchor and anchor[0] == number and not _same(anchor[1], digest):
            return number
    return number + 1 if anchor and anchor[0] > number else None


def _same(given: Any, wanted: str) -> bool:
    return hmac.compare_digest(str(given).encode(errors="surrogateescape"), wanted.encode())


def _digest(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}|{text}".encode()).hexdigest()


def _seal(key: bytes, digest: str) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()
