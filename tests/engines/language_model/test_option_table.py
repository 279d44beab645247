"""The table of generation options: that fields, checks, counterparts and pages agree with it."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from transformers import GenerationConfig

from iblip.engines.language_model import option_page
from iblip.engines.language_model.option_kinds import (
    Biases,
    Choice,
    Flag,
    Integer,
    Kind,
    Number,
    Schema,
    Texts,
    TokenIds,
)
from iblip.engines.language_model.option_page import PLACE, page_with_tables
from iblip.engines.language_model.option_table import (
    MAX_SEED,
    MOST_CANDIDATES,
    ONNXRUNTIME,
    OPTIONS,
    VLLM,
    Option,
)
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import OptionError

ROOT = Path(__file__).parents[3]
PAGES = ("docs/wire.md", "docs/compat.md")


def test_every_row_is_a_field_in_the_same_order_and_with_its_default() -> None:
    plain = GenerationOptions()
    found = [(field.name, getattr(plain, field.name)) for field in fields(GenerationOptions)]
    assert found == [(name, option.default) for name, option in OPTIONS.items()]
    assert [option.name for option in OPTIONS.values()] == list(OPTIONS)


HINTS: Mapping[type[Kind], Any] = {
    Integer: int,
    Number: float,
    Flag: bool,
    Texts: tuple[str, ...],
    TokenIds: tuple[int, ...],
    Biases: Mapping[int, float],
    Schema: Mapping[str, Any],
}


def alternatives(hint: Any) -> set[Any]:
    """What a union holds, and which values a literal does; a boolean is two."""
    if hint is bool:
        return {True, False}
    if get_origin(hint) is Literal:
        return set(get_args(hint))
    options = get_args(hint) if type(None) in get_args(hint) or bool in get_args(hint) else ()
    return set().union(*map(alternatives, options)) if options else {hint}


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_a_field_is_annotated_with_what_its_row_takes(option: Option) -> None:
    kind = option.kind
    taken = set(kind.values) if isinstance(kind, Choice) else {HINTS[type(kind)]}
    nothing = {type(None)} if option.default is None else set()
    assert alternatives(get_type_hints(GenerationOptions)[option.name]) == taken | nothing


def good(option: Option) -> Iterator[Any]:
    """The ends of the range, and all of a choice."""
    match option.kind:
        case Integer(least, most):
            yield from (least, least + 1, 2**63 - 1 if most is None else most)
        case Number(least, most, above):
            yield from (5e-324 if above and not least else least, most, float(most))
        case Choice(values):
            yield from values
        case Texts():
            yield from ((), ("é", " a"), ("a",) * MOST_CANDIDATES)
        case TokenIds():
            yield from ((), (0, 10**6))
        case Biases(bias):
            yield from ({}, {0: bias.least, 7: bias.most})
        case Schema():
            yield from ({}, {"type": "string", "enum": ["é"]})
    if option.default is None:
        yield None


def bad(option: Option) -> Iterator[tuple[Any, str]]:
    """Below, above, of another type; and what the message says."""
    name, nan, infinite = option.name, float("nan"), float("inf")
    wrong: list[Any]
    match option.kind:
        case Integer(least, most):
            above = [2**63, 10**400] if most is None else [most + 1, 10**400]
            wrong = [least - 1, *above, True, 1.0, nan, "1", [1]]
            expected = f"an integer, {least} or more" if most is None else f"from {least} to {most}"
        case Number(least, most, above_least):
            wrong = [least - 0.01, most + 0.01, nan, infinite, -infinite, 10**400, True, "1"]
            wrong += [least, 0] if above_least else []
            expected = "a number above 0, at most" if above_least else f"a number from {least} to"
        case Flag():
            wrong, expected = [0, 1, "true", nan], "expected true or false"
        case Choice(values):
            wrong, expected = [0, 1, "Never", " ", nan, ["all"]], str(values[-1])
        case Texts():
            wrong, expected = ["a", ["a"], ("a", ""), ("a", 1), True, nan], "a list of "
            yield ("a", "\ud800"), rf"{name} has '\ud800', which is not valid Unicode text"
        case TokenIds():
            wrong, expected = [3, "3", [3], True, nan], "a list of at most 1000 token ids"
            for token in (-1, True, 1.0, nan, "3"):
                yield (2, token), f"a token in {name} is {token!r}; expected an integer, 0 or more"
        case Biases(bias):
            wrong, expected = [3, [3], ((3, 1.0),), True, nan], "an object of token ids"
            for token in (-1, True, 1.0, "3"):
                yield {token: 1.0}, f"a token in {name} is {token!r}; expected an integer, 0 or"
            for value in (bias.least - 1, bias.most + 1, True, nan, "1", None):
                yield {3: value}, f"{name} of 3 is {value!r}; expected a number from -100 to 100"
        case Schema(most):
            wrong, expected = [3, "{}", [{}], True, nan], "a JSON schema, an object of at most"
            yield {"const": "x" * most}, f"{name} has {most + 13} characters of JSON; expected"
            yield {"const": nan}, f"{name} is no JSON: Out of range float"
            yield {"const": {1}}, f"{name} is no JSON: Object of type set"
    wrong += [] if option.default is None else [None]
    for value in wrong:
        yield value, f"{name} is {value!r}; expected "
        yield value, expected


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_every_range_is_enforced_and_named(option: Option) -> None:
    for value in good(option):
        option.check(value)
    for value, message in bad(option):
        with pytest.raises(OptionError) as caught:
            GenerationOptions(**{option.name: value})
        assert message in str(caught.value)


def test_help_tells_what_each_option_means_and_takes() -> None:
    text = " ".join(pydoc.render_doc(GenerationOptions, renderer=pydoc.plaintext).split("\n"))
    text = " ".join(text.replace(" | ", " ").split())
    for name, option in OPTIONS.items():
        for said in (f"{name}: {option.help}", option.note, option.kind.expected):
            assert said in text


def test_rows_name_only_options_that_there_are() -> None:
    for option in OPTIONS.values():
        for name in filter(None, (option.at_most, option.instead_of)):
            assert isinstance(OPTIONS[name].kind, Integer)
        assert bool(option.example) == (option.kind.json is not None)
        assert ONNXRUNTIME in option.engines
        assert set(option.engines) <= {ONNXRUNTIME, VLLM}


def test_transformers_has_the_arguments_that_are_called_its_own() -> None:
    named = {option.transformers for option in OPTIONS.values()} - {""}
    assert named <= vars(GenerationConfig()).keys()


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_current(path: str) -> None:
    page = (ROOT / path).read_text(encoding="utf-8")
    assert len(PLACE.findall(page)) == 1
    command = f"python -m {option_page.__name__} {' '.join(PAGES)}"
    assert page == page_with_tables(page), command
    assert all(f"\n| `{name}` | " in page for name in OPTIONS)


def test_a_page_that_is_out_of_date_is_written_anew(tmp_path: Path) -> None:
    page = (ROOT / PAGES[0]).read_text(encoding="utf-8")
    stale = tmp_path / "page.md"
    stale.write_text(PLACE.sub(r"\1| old |\n\3", page), encoding="utf-8")
    assert stale.read_text(encoding="utf-8") != page
    command = [sys.executable, "-m", option_page.__name__, str(stale)]
    subprocess.run(command, cwd=ROOT, check=True)
    assert stale.read_text(encoding="utf-8") == page


def test_a_page_shows_values_as_a_request_has_them() -> None:
    page = (ROOT / "docs/wire.md").read_text(encoding="utf-8")
    assert str(MAX_SEED) not in page
    for row in (
        '| `early_stopping` | `true`, `false` or `"never"` | `false` | When',
        '| `stop` | list of at most 1000 non-empty strings: `["\\n", "###"]` | `[]` | Strings',
        "| `min_length` | integer from 0 to `max_length` | `0` | Alternative",
        "| `seed` | integer from 0 to 2⁶³ - 1 | a fresh one | Seed",
    ):
        assert f"\n{row}" in page
