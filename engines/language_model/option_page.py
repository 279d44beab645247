"""The generation options as tables for readers, written into the pages that have a place for them.

A place is two comments, the first of which names the table. After a change of `option_table.py`,
`python -m` with this module's name and the pages (docs/wire.md, docs/compat.md) writes the tables
anew; a test says where they are out of date.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import fill

from iblip.engines.language_model.option_kinds import Choice, joined
from iblip.engines.language_model.option_table import MAX_SEED, OPTIONS, VLLM, Option

PLACE = re.compile(
    r"(<!-- option table: (\w+), made by option_page\.py -->\n).*?(<!-- end of table -->\n)",
    re.DOTALL,
)
"""The comments around a table, and its name in `TABLES`."""


def page_with_tables(page: str) -> str:
    """A page in Markdown, each of its tables made anew.

    Raises:
        KeyError: the page has a place for a table that there is not.
    """
    return PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n{place[3]}", page)


def parameters() -> str:
    """The options as request parameters, what vLLM refuses, and what goes with candidates."""
    head = ("parameter", "value", "default", "")
    rows = (
        (f"`{name}`", _values(option), _default(option), f"{option.help} {option.note}".strip())
        for name, option in OPTIONS.items()
    )
    refused = joined((name for name, one in OPTIONS.items() if VLLM not in one.engines), "and")
    ranks = joined((name for name, one in OPTIONS.items() if one.ranks), "and")
    return (
        f"{_table(head, rows)}\n"
        f"{fill(f'A model that runs on vLLM refuses {refused} by name.', 108)}\n\n"
        f"{fill(f'Of the other options only {ranks} go with `candidates`.', 108)}\n"
    )


def counterparts() -> str:
    """What the options are called in LAVIS, in transformers and in vLLM."""
    head = ("option", "LAVIS", "transformers' `generate`", "vLLM's `SamplingParams`")
    rows = (
        (
            f"`{name}`",
            _lavis(option),
            _code(option.transformers),
            _code(option.vllm) if VLLM in option.engines else "refused",
        )
        for name, option in OPTIONS.items()
    )
    return _table(head, rows)


TABLES: Mapping[str, Callable[[], str]] = {"parameters": parameters, "counterparts": counterparts}
"""By name in the comment before each."""


def _values(option: Option) -> str:
    kind = option.kind
    if isinstance(kind, Choice):
        return joined(map(json.dumps, kind.words.values()), "or")
    if option.at_most:
        return f"integer from 0 to `{option.at_most}`"
    expected = re.sub("^an? ", "", kind.expected).replace(str(MAX_SEED), "2⁶³ - 1")
    return f"{expected}: `{option.example}`" if option.example else expected


def _default(option: Option) -> str:
    return option.unset or f"`{json.dumps(option.default)}`"


def _lavis(option: Option) -> str:
    """Its names there, each with the calls that have it."""
    by_name = groupby(option.lavis.items(), key=lambda item: item[1])
    names = (f"`{name}` ({', '.join(f'`{call}`' for call, _ in calls)})" for name, calls in by_name)
    return ", ".join(names) or "—"


def _code(name: str) -> str:
    return f"`{name}`" if name else "—"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    rule = ["---"] * len(titles)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rule, *rows))


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(page_with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
