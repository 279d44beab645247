"""Arguments of another type than their annotation."""

from collections.abc import Iterable, Mapping
from typing import TypedDict, Unpack

import numpy as np
import pytest

from iblip.export.errors import OptionError
from iblip.export.system.arguments import checked


class Keywords(TypedDict, total=False):
    slots: int | None
    targets: Iterable[str]
    parts: Mapping[str, str] | None


@checked
def function(
    count: int = 1,
    *,
    name: str | None = None,
    share: float = 0.5,
    verify: bool = True,
    token: str | None = None,
    anything: "list[int] | int" = 3,
    client: "OnlyForTypeCheckers | None" = None,  # noqa: F821
    **others: Unpack[Keywords],
) -> str:
    """Its own words."""
    return f"{count} {name}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": "1"}, "^count is '1'; expected an integer$"),
        ({"count": True}, "^count is True; expected an integer$"),
        ({"count": 1.0}, "^count is 1.0; expected an integer$"),
        ({"count": None}, "^count is None; expected an integer$"),
        ({"name": 5}, "^name is 5; expected text or None$"),
        ({"share": "x"}, "^share is 'x'; expected a number$"),
        ({"verify": "no"}, "^verify is 'no'; expected True or False$"),
        ({"slots": "8"}, "^slots is '8'; expected an integer or None$"),
        ({"targets": 5}, "^targets is 5; expected a list$"),
        ({"parts": ["x"]}, r"^parts is \['x'\]; expected a mapping or None$"),
        ({"token": b"secret"}, "^token is of type bytes; expected text or None$"),
    ],
)
def test_another_type_is_refused_by_name(arguments, message):
    with pytest.raises(OptionError, match=message):
        function(**arguments)


def test_what_fits_is_passed_on():
    assert function(np.int64(3), name="x", share=1, verify=False, slots=None) == "3 x"
    assert function(targets=(x for x in "ab"), parts={"a": "b"}) == "1 None"
    assert function(share=np.float32(0.5), anything="not checked") == "1 None"


def test_it_is_the_same_function_to_a_reader():
    assert function.__doc__ == "Its own words."
    with pytest.raises(TypeError, match=r"unexpected|multiple"):
        function(1, count=2)
