"""Dataclasses from JSON that may say anything: every value is checked against its field's type."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from iblip.export.messages import shown

T = TypeVar("T")


def from_fields(kind: type[T], data: object, place: str = "") -> T:
    """Returns an instance of a dataclass, given its fields by name.

    A field is a `str`, `int`, `float`, `bool`, `Any`, a `Literal`, such a dataclass, a tuple or
    mapping of these, or one of several (`int | None`). JSON's arrays become tuples.

    Args:
        kind: the dataclass.
        data: as from JSON.
        place: of `data` in what it is from, for messages.

    Raises:
        ValueError: a field is missing or unknown, or a value is of another type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{place} is {shown(data)}; expected an object".strip())
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(map(str, data.keys() - known.keys()))
    if unknown:
        raise ValueError(f"{place} has {shown(unknown[0])}, which is no field".strip())
    for name, field in known.items():
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if name not in data and not optional:
            raise ValueError(f"{place} has no field {name}".strip())
    hints = get_type_hints(kind)
    within = f"{place}." if place else ""
    return kind(**{n: _value(f"{within}{n}", hints[n], value) for n, value in data.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_fields(hint, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_value(name, args[0], one) for one in value)
    if origin in (Union, types.UnionType):
        return _one_of(name, args, value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {key: _value(f"{name}.{key}", args[1], one) for key, one in value.items()}
    if not _fits(hint, origin, args, value):
        raise ValueError(f"{name} is {shown(value)}; expected {_in_words(hint)}")
    return value


def _one_of(name: str, hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        if hint is type(None) and value is None:
            return None
        with contextlib.suppress(ValueError):
            return _value(name, hint, value)
    expected = " or ".join(map(_in_words, hints))
    raise ValueError(f"{name} is {shown(value)}; expected {expected}")


def _fits(hint: Any, origin: Any, args: tuple[Any, ...], value: Any) -> bool:
    if hint is Any:
        return True
    if origin is Literal:
        return value in args
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(hint, type) and isinstance(value, hint)


def _in_words(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
