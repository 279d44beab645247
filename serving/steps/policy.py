"""What the operator of a server has decided for all requests, from `iblip serve` to the models.

Triton passes nothing to its models but their configs, which belong to the build; so it travels in
a variable of the environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

from iblip.export.artifact.typed import from_fields
from iblip.export.errors import OptionError
from iblip.export.system.json_text import parse_json

VARIABLE = "IBLIP_SERVING_POLICY"

CALL_KEY_VARIABLE = "IBLIP_CALL_KEY"
"""Holds a secret made at each start: by it one model knows another as its caller."""

MOST = 1e9
"""Of every number: 30 years for a timeout."""

HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
"""Names of headers: RFC 9110, section 5.6.2."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The operator's decisions; `None` and an empty text are none.

    Attributes:
        default_timeout_s: seconds for a request that brings no `timeout`.
        caller_header: the header of gRPC or HTTP by which callers are told apart.
        max_caller_requests: requests that one caller may have waiting or running.
        max_caller_tokens: tokens that these may generate, together.

    Raises:
        OptionError: a number is not above 0, or there is a limit of callers and no header.
    """

    default_timeout_s: float | None = None
    caller_header: str = ""
    max_caller_requests: int | None = None
    max_caller_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if not isinstance(value, str) and value is not None and not 0 < value <= MOST:
                raise OptionError(f"{name} is {value}; expected more than 0, at most {MOST:g}")
        if self.caller_header and not HEADER.fullmatch(self.caller_header):
            raise OptionError(
                f"caller_header is {self.caller_header!r}, which no header is called; expected a"
                " name such as authorization"
            )
        if (self.max_caller_requests or self.max_caller_tokens) and not self.caller_header:
            raise OptionError(
                "callers are limited and not told apart; expected caller_header: the header that "
                "each sends, such as authorization"
            )

    def to_environment(self) -> dict[str, str]:
        """The variable; none where nothing has been decided."""
        return {} if self == Policy() else {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """The inverse of `to_environment`.

        Raises:
            OptionError: the variable is damaged.
        """
        text = environment.get(VARIABLE, "{}")
        try:
            return from_fields(cls, parse_json(text))
        except ValueError as error:
            raise OptionError(f"the variable {VARIABLE} is damaged: {error}") from error
