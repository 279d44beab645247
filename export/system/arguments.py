"""Refuses arguments of another type than their annotation, where callers are people."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from iblip.export.errors import OptionError
from iblip.export.messages import shown

_NUMBERS: Mapping[type, type] = {int: Integral, float: Real}

P = ParamSpec("P")
T = TypeVar("T")

WORDS: Mapping[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    Iterable: "a list",
    Mapping: "a mapping",
    type(None): "None",
}
"""The types that are checked, and what a message calls them."""

SECRETS = frozenset({"token"})
"""Arguments that no message repeats."""


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """A function that raises `OptionError` where an argument has another type than it expects.

    Arguments are checked whose annotation is one of `WORDS`, or a union of some of them; so are the
    keywords of an `Unpack[...]`. numpy's numbers are numbers, and `bool` is none. Annotations that
    only type checkers can read are passed over.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        hints = _hints(function)
        given = signature.bind(*args, **kwargs).arguments
        for name, value in {**given, **kwargs}.items():
            check_argument(name, value, hints.get(name))
        return function(*args, **kwargs)

    return call


def check_argument(name: str, value: object, annotation: Any) -> None:
    """Raises `OptionError` if a value is not of a type, or a union of types, that is in `WORDS`."""
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds = [get_origin(member) or member for member in members]
    if not all(kind in WORDS for kind in kinds) or any(_fits(value, kind) for kind in kinds):
        return
    found = f"of type {type(value).__name__}" if name in SECRETS else shown(value)
    expected = " or ".join(WORDS[kind] for kind in kinds)
    raise OptionError(f"{name} is {found}; expected {expected}")


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, _NUMBERS.get(kind, kind))


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


@functools.cache
def _hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    hints: dict[str, Any] = {}
    for name, annotation in function.__annotations__.items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError):  # imported where `TYPE_CHECKING` is true
            hints |= get_type_hints(one, function.__globals__)
    for name in [name for name, hint in hints.items() if str(get_origin(hint)) == "typing.Unpack"]:
        hints |= get_type_hints(get_args(hints.pop(name))[0])
    return hints
