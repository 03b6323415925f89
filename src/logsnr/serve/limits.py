"""How much one token or address may ask for: rates, budgets of images, and waiting after failures.

All numbers stand in the database, so that workers share them and a restart forgets none.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects.sqlite import insert

from logsnr.serve.database import BUDGETS, FAILURES, RATES
from logsnr.serve.errors import RefusedError

MINUTE, DAY = 60.0, 86_400
LONGEST = 900.0
"""Seconds to wait at most after a failure; after twice as many without a further one they are forgotten."""


def check_rate(connection: Connection, name: str, per_minute: int, now: float) -> None:
    """Count one request of a name: as many as a minute holds at once, and then as many as fit one after another.

    This is the generic cell rate algorithm: ``due`` is when all requests so far would be through, one after another.

    Raises:
        RefusedError: 429, with the seconds to wait.
    """
    connection.execute(delete(RATES).where(RATES.c.due < now))
    due = connection.scalar(select(RATES.c.due).where(RATES.c.name == name)) or now
    due = max(due, now) + MINUTE / per_minute
    if due - now > MINUTE + 1e-9:
        raise RefusedError(
            429, "rate_limit", f"more than {per_minute} requests a minute", retry_after=due - now - MINUTE
        )
    found = insert(RATES).values(name=name, due=due)
    connection.execute(found.on_conflict_do_update(index_elements=["name"], set_={"due": due}))


def check_budget(connection: Connection, name: str, images: int, per_day: int, now: float) -> None:
    """Spend a number of images of today's budget.

    Raises:
        RefusedError: 429, with the seconds until tomorrow.
    """
    day = int(now // DAY)
    mine = (BUDGETS.c.name == name) & (BUDGETS.c.day == day)
    spent = connection.scalar(select(BUDGETS.c.images).where(mine)) or 0
    if spent + images > per_day:
        line = f"{spent} of {per_day} images of today are made"
        raise RefusedError(429, "budget", line, retry_after=(day + 1) * DAY - now)
    connection.execute(delete(BUDGETS).where(BUDGETS.c.day < day - 1))
    add_images(connection, name, day, images)


def add_images(connection: Connection, name: str, day: int, images: int) -> None:
    """Count images of a day; a negative number gives back what was not made."""
    found = insert(BUDGETS).values(name=name, day=day, images=images)
    more = BUDGETS.c.images + found.excluded.images
    connection.execute(found.on_conflict_do_update(index_elements=["name", "day"], set_={"images": more}))


def check_failures(connection: Connection, blamed: str, now: float) -> None:
    """Let a key or an address that failed too often wait.

    Raises:
        RefusedError: 429, with the seconds to wait.
    """
    until = connection.scalar(select(FAILURES.c.until).where(FAILURES.c.blamed == blamed)) or now
    if until > now:
        line = "too many bad tokens, or concepts that were refused"
        raise RefusedError(429, "failures", line, retry_after=until - now)


def add_failure(connection: Connection, blamed: str, forgiven: int, now: float) -> None:
    """Count a failure of a key or an address: from the first that is not forgiven, each doubles its wait."""
    connection.execute(delete(FAILURES).where(FAILURES.c.last < now - 2 * LONGEST))
    tries = 1 + (connection.scalar(select(FAILURES.c.tries).where(FAILURES.c.blamed == blamed)) or 0)
    doubled = min(tries - forgiven - 1, 20)
    until = now + min(2.0**doubled, LONGEST) if doubled >= 0 else 0.0
    values = {"tries": tries, "last": now, "until": until}
    found = insert(FAILURES).values(blamed=blamed, **values)
    connection.execute(found.on_conflict_do_update(index_elements=["blamed"], set_=values))
