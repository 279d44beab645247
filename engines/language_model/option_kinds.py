"""The values that a generation option may take, and how each kind refuses all others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from iblip.export.errors import OptionError
from iblip.export.messages import shown


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Attributes:
        json: what the JSON of the request parameter, a string, holds; `None` where the parameter is
            the value itself.
    """

    json: ClassVar[type | None] = None

    @property
    def expected(self) -> str:
        """These values in words, as an error and a page name them."""
        raise NotImplementedError

    def accepts(self, value: object) -> bool:
        """Whether this is one of them."""
        raise NotImplementedError

    def check(self, name: str, value: object) -> None:
        """Refuses any other value.

        Raises:
            OptionError: naming the option, the value that was given, and those expected.
        """
        if not self.accepts(value):
            raise OptionError(f"{name} is {shown(value)}; expected {self.expected}")


MOST = 2**63 - 1
"""The largest integer that travels."""


@dataclass(frozen=True)
class Integer(Kind):
    """From `least` to `most`, both included; `None` is no upper limit. No boolean is an integer."""

    least: int
    most: int | None = None

    @property
    def expected(self) -> str:
        """See `Kind`."""
        if self.most is None:
            return f"an integer, {self.least} or more"
        return f"an integer from {self.least} to {self.most}"

    def accepts(self, value: object) -> bool:
        """See `Kind`."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return self.least <= value <= (MOST if self.most is None else self.most)


@dataclass(frozen=True)
class Number(Kind):
    """An integer or a float from `least` to `most`, both included, or only `most` if `above`."""

    least: float
    most: float
    above: bool = False

    @property
    def expected(self) -> str:
        """See `Kind`."""
        if self.above:
            return f"a number above {self.least:g}, at most {self.most:g}"
        return f"a number from {self.least:g} to {self.most:g}"

    def accepts(self, value: object) -> bool:
        """See `Kind`. NaN is in no range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        return self.least <= value <= self.most and not (self.above and value == self.least)


@dataclass(frozen=True)
class Choice(Kind):
    """One of some strings and booleans; `""` stands for none of the others."""

    values: tuple[str | bool, ...]

    @property
    def words(self) -> Mapping[str, str | bool]:
        """Values by the word for each on a command line, which has none for `""`."""
        return {plain(value): value for value in self.values if value != ""}

    @property
    def expected(self) -> str:
        """See `Kind`."""
        words = (repr(one) if isinstance(one, str) else plain(one) for one in self.values)
        return joined(words, "or", quote="")

    def accepts(self, value: object) -> bool:
        """See `Kind`. 1 is not true."""
        return any(isinstance(value, type(one)) and value == one for one in self.values)


@dataclass(frozen=True)
class Flag(Choice):
    """True or false."""

    values: tuple[str | bool, ...] = (True, False)


@dataclass(frozen=True)
class Texts(Kind):
    """A tuple of strings, none of them empty.

    Attributes:
        most: how many at most.
        blank: whether one may be white space alone.
    """

    json = list
    most: int
    blank: bool = True

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a list of at most {self.most} non-empty strings"

    def accepts(self, value: object) -> bool:
        """See `Kind`; `check` looks at the strings, too."""
        return isinstance(value, tuple) and all(isinstance(one, str) and one for one in value)

    def check(self, name: str, value: Any) -> None:
        """See `Kind`."""
        super().check(name, value)
        if len(value) > self.most:
            raise OptionError(f"{name} has {len(value)} texts; expected at most {self.most}")
        for text in value:
            if not self.blank and not text.strip():
                raise OptionError(f"{name} has {shown(text)}; expected texts that are not blank")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
                raise OptionError(
                    f"{name} has {shown(text)}, which is not valid Unicode text"
                ) from error


TOKEN = Integer(0)
"""A token id."""


@dataclass(frozen=True)
class TokenIds(Kind):
    """A tuple of token ids, so many at most."""

    json = list
    most: int

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a list of at most {self.most} token ids"

    def accepts(self, value: object) -> bool:
        """See `Kind`; `check` looks at the ids, too."""
        return isinstance(value, tuple)

    def check(self, name: str, value: Any) -> None:
        """See `Kind`."""
        super().check(name, value)
        if len(value) > self.most:
            raise OptionError(f"{name} has {len(value)} token ids; expected at most {self.most}")
        for token in value:
            TOKEN.check(f"a token in {name}", token)


@dataclass(frozen=True)
class Biases(Kind):
    """A mapping of token ids to numbers, each of these values."""

    json = dict
    bias: Number

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"an object of token ids, each with {self.bias.expected}"

    def accepts(self, value: object) -> bool:
        """See `Kind`; `check` looks at what is in it, too."""
        return isinstance(value, Mapping)

    def check(self, name: str, value: Any) -> None:
        """See `Kind`."""
        super().check(name, value)
        for token, bias in value.items():
            TOKEN.check(f"a token in {name}", token)
            self.bias.check(f"{name} of {shown(token)}", bias)


@dataclass(frozen=True)
class Schema(Kind):
    """A JSON schema: an object of JSON, which takes so many characters at most."""

    json = dict
    most: int

    @property
    def expected(self) -> str:
        """See `Kind`."""
        return f"a JSON schema, an object of at most {self.most} characters of JSON"

    def accepts(self, value: object) -> bool:
        """See `Kind`; `check` looks at what is in it, too."""
        return isinstance(value, Mapping)

    def check(self, name: str, value: Any) -> None:
        """See `Kind`."""
        super().check(name, value)
        try:
            size = len(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"{name} is no JSON: {error}; expected {self.expected}") from error
        if size > self.most:
            raise OptionError(f"{name} has {size} characters of JSON; expected {self.expected}")


def joined(words: Iterable[str], conjunction: str, *, quote: str = "`") -> str:
    """Words as one phrase: `a`, `b` or `c`."""
    *others, last = (f"{quote}{word}{quote}" for word in words)
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def plain(value: Any) -> str:
    """A value as a command line has it: a string without quotes, and 0 for 0.0."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
