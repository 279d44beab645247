"""Who asks: keys from a file, and how much each may ask at once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from starlette.types import Scope

from iblip.export.errors import OptionError
from iblip.export.messages import shown
from iblip.serving.credentials import check_token, warn_if_public
from iblip.serving.gateway.errors import TooManyError, UnknownKeyError

MINUTE_S = 60.0

_FIELD = re.compile(r"(name)=([\w.-]{1,64})|(open|per_minute)=([1-9]\d{0,8})", re.ASCII)


@dataclass(kw_only=True)
class Caller:
    """A key, and what its requests use.

    Attributes:
        name: in the log, where the key itself never is.
        most_open: requests that may be open at once; `None` is no limit.
        per_minute: requests that may begin in a minute; `None` is no limit.
        open: requests that are.
    """

    name: str
    most_open: int | None = None
    per_minute: int | None = None
    open: int = 0
    _allowance: float = field(default=0.0, repr=False)
    _counted_s: float = field(default=0.0, repr=False)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request until the block ends.

        Raises:
            TooManyError: there are as many as there may be.
        """
        if self.most_open is not None and self.open >= self.most_open:
            raise TooManyError(f"{self.open} requests of {self.name} are open, the most allowed")
        self._count()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    def _count(self) -> None:
        """Takes one request off what a minute allows, which comes back evenly."""
        if self.per_minute is None:
            return
        now = time.monotonic()
        per_s = self.per_minute / MINUTE_S
        back = self._allowance + (now - self._counted_s) * per_s
        self._allowance = min(float(self.per_minute), back) if self._counted_s else self.per_minute
        self._counted_s = now
        if self._allowance < 1:
            raise TooManyError(
                f"{self.name} may begin {self.per_minute} requests in a minute",
                (1 - self._allowance) / per_s,
            )
        self._allowance -= 1


class Callers:
    """All who may ask.

    Args:
        keys: callers by the sha256 of their key; `None` lets anybody ask.
    """

    def __init__(self, keys: Mapping[bytes, Caller] | None = None) -> None:
        self._keys = keys
        self._anybody = Caller(name="anybody")

    @property
    def are_known(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None

    def of(self, scope: Scope) -> Caller:
        """Who sends a request.

        Raises:
            UnknownKeyError: it has no key, or an unknown one.
        """
        if self._keys is None:
            return self._anybody
        value = next((v for name, v in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = value.partition(b" ")
        caller = self._keys.get(sha256(key.strip()).digest())
        if scheme.lower() != b"bearer" or caller is None:
            found = "another one" if value else "none"
            raise UnknownKeyError(
                f"this gateway needs a key, and the request has {found}. Send the header "
                "`Authorization: Bearer KEY` (OpenAI's clients: api_key=)."
            )
        return caller


def read_callers(path: Path) -> Callers:
    """The callers in a file: on each line a key, and `name=`, `open=`, `per_minute=`.

    Raises:
        OptionError: it cannot be read, has no key, or a line is not one. Never repeats a key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OptionError(
            f"the file of keys {shown(str(path))} cannot be read: {reason}"
        ) from error
    keys: dict[bytes, Caller] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            check_token(words[0])
            caller = _caller(words[1:], number)
        except OptionError as error:
            raise OptionError(f"{path}:{number}: {error}") from error
        if keys.setdefault(sha256(words[0].encode()).digest(), caller) is not caller:
            raise OptionError(f"{path}:{number}: the key is there twice")
    if not keys:
        raise OptionError(f"{path} has no key. `openssl rand -hex 32` makes one.")
    warn_if_public(path, "file of keys")
    return Callers(keys)


def _caller(words: Iterable[str], number: int) -> Caller:
    fields: dict[str, str] = {}
    for word in words:
        match = _FIELD.fullmatch(word)
        if match is None:
            raise OptionError(
                f"{shown(word)} is no limit; expected name=NAME, open=NUMBER or per_minute=NUMBER"
            )
        fields[match[1] or match[3]] = match[2] or match[4]
    limits = {
        name: int(fields[name]) if name in fields else None for name in ("open", "per_minute")
    }
    return Caller(
        name=fields.get("name", f"key {number}"),
        most_open=limits["open"],
        per_minute=limits["per_minute"],
    )
