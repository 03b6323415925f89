"""Frozen configuration dataclasses to JSON and back, with unknown and ill-typed entries refused."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from logsnr.core.errors import BrokenError, InputError, MissingError

Config = TypeVar("Config")


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass as plain JSON values: paths become strings, tuples lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(kind: type[Config], values: dict[str, Any]) -> Config:
    """The dataclass ``kind`` from JSON values.

    Raises:
        InputError: a key that the dataclass lacks, one without default that is missing, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(f"{kind.__name__} has no entry {unknown[0]!r}: it takes {', '.join(hints)}")
    missing = [name for name in _required(kind) if name not in values]
    if missing:
        raise InputError(f"{kind.__name__} lacks the entry {missing[0]!r}, which has no default: add it")
    return kind(**{name: _convert(hints[name], value, f"{kind.__name__}.{name}") for name, value in values.items()})


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        MissingError: there is no such file.
        BrokenError: it is unreadable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingError(f"there is no file {path}: check the path, or make that file first") from error
    except (OSError, ValueError) as error:
        raise BrokenError(f"{path} cannot be read as JSON: {error}; restore or remove it") from error


def _required(kind: Any) -> list[str]:
    """The entries without a default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _convert(hint: Any, value: Any, where: str) -> Any:
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _first_fit([a for a in arguments if a is not type(None)], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], item, f"{where}[{name!r}]") for name, item in value.items()}
    if origin is typing.Literal and value in arguments:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return from_dict(typing.cast(type, hint), value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise InputError(f"{where} cannot be {value!r}: it must be of type {getattr(hint, '__name__', hint)}")


def _first_fit(hints: list[Any], value: Any, where: str) -> Any:
    """The value as the first of several types that takes it; the complaint is that of the last."""
    for hint in hints[:-1]:
        try:
            return _convert(hint, value, where)
        except InputError:
            continue
    return _convert(hints[-1], value, where)
