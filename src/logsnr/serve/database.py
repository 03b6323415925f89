"""The server's state: SQLite with a write-ahead log, shared by workers; a killed process loses nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, Engine, Float, Integer, MetaData, String, Table, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from logsnr.core.artifact import write_file
from logsnr.core.errors import BrokenError, InputError

_SCHEMA = MetaData()

KEYS = Table(
    "keys",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("prefix", String, nullable=False, unique=True),
    Column("digest", String, nullable=False),
    Column("role", String, nullable=False),
    Column("label", String, nullable=False),
    Column("images_per_day", Integer),
    Column("created", Float, nullable=False),
    Column("not_after", Float),
    Column("revoked", Float),
)
GRANTS = Table(
    "grants",
    _SCHEMA,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False, index=True),
    Column("concept", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("not_after", Float),
    Column("revoked", Float),
)
AUDIT = Table(
    "audit",
    _SCHEMA,
    Column("number", Integer, primary_key=True),
    Column("event", String, nullable=False),
    Column("digest", String, nullable=False),
    Column("seal", String, nullable=False),
)
RATES = Table("rates", _SCHEMA, Column("name", String, primary_key=True), Column("due", Float, nullable=False))
FAILURES = Table(
    "failures",
    _SCHEMA,
    Column("blamed", String, primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("last", Float, nullable=False),
    Column("until", Float, nullable=False),
)
BUDGETS = Table(
    "budgets",
    _SCHEMA,
    Column("name", String, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("images", Integer, nullable=False),
)


def open_database(path: Path) -> Engine:
    """The database in a file, made for its owner alone where there is none.

    Raises:
        InputError: it cannot be made or written.
        BrokenError: the file is no database of this kind.
    """
    _make(path, b"")
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10}, hide_parameters=True)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    try:
        _SCHEMA.create_all(engine)
    except SQLAlchemyError as error:
        raise BrokenError(f"{path} cannot be used as the server's database ({error.__class__.__name__})") from None
    return engine


def _prepare(raw: Any, _: Any) -> None:
    """Transactions begin when they are told to; readers do not wait for writers."""
    raw.isolation_level = None
    for line in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        raw.execute(f"PRAGMA {line}")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that waits for no writer, and sees what was written when it began."""
    with engine.connect().execution_options(reads=True) as connection:
        yield connection


def _begin(connection: Connection) -> None:
    """What writes has the lock from its start, so that nothing changes between its question and its answer."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE")


def sealing_key(path: Path, *, new: bool) -> bytes:
    """The key of the audit's seals, beside the database; made for its owner alone, if the audit is ``new``.

    Raises:
        InputError: it is not there, or is no such key.
    """
    place = path.with_name(f"{path.name}.audit-key")
    if new:
        _make(place, secrets.token_hex(32).encode())
    try:
        found = bytes.fromhex(place.read_text(encoding="ascii"))
    except (OSError, ValueError):
        found = b""
    if len(found) != 32:
        raise InputError(f"{place} is not there or no key of the audit: restore it, or the trail cannot be verified")
    return found


def _make(path: Path, content: bytes) -> None:
    """A file for its owner alone, whole from its start; one that is there is left, whoever made it.

    Raises:
        InputError: it cannot be made.
    """
    if path.exists():
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    write_file(part, content, private=True)
    try:
        with suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink()
