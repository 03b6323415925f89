"""Moments in ISO form, with their zone."""

from __future__ import annotations

from datetime import datetime

from logsnr.core.errors import InputError


def parse_moment(text: str) -> datetime:
    """The moment that a text says.

    Raises:
        InputError: it is no moment, or lacks its zone.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InputError(f"{text!r:.40} is no moment with its zone: write it as 2027-01-31T00:00:00+00:00")
    return found


def later(text: str, now: float) -> float:
    """Seconds since 1970 of a moment that lies ahead, within a hundred years.

    Raises:
        InputError: it is none, or lies elsewhere.
    """
    found = parse_moment(text)
    if not 1 < found.year < 9999 or not now < found.timestamp() < now + 100 * 366 * 86_400:
        raise InputError(f"{text!r:.40} has to lie ahead, within a hundred years")
    return found.timestamp()
