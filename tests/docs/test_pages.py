"""Every command and example of every page, run in the order of the page, or said to need what."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator

import click
import pytest

from iblip.serving.cli import iblip
from tests.docs.pages import NEEDS, PAGES, PROGRAMS, RUN, Block, Reader, blocks_of, text_of

FIRST = ("docs/quickstart.md", "docs/clients.md", "docs/openai.md", "docs/wire.md")
"""Pages that `make test` runs; `make test-all` runs them all. README.md: `test_readme.py`."""

COMMANDS = re.compile(
    r"^ *(?:\$ )?(?:\.venv/bin/)?(?:iblip|pip|python3?|make|docker|curl|export|ray|openssl) +\S"
)
ASSIGNMENT = re.compile(r"^\w+=\S* ")

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUNNABLE = [block for block in BLOCKS if block.language in RUN and not block.needs]
RUN_PAGES = sorted({block.page for block in RUNNABLE} - {"README.md"})


def test_every_page_has_blocks_with_a_language():
    assert len(PAGES) > 25
    assert len(RUNNABLE) > 50
    assert [block.place for block in BLOCKS if not block.language] == []


def test_what_a_block_needs_is_one_of_few_words_that_the_pages_explain():
    assert {block.needs for block in BLOCKS} - {""} <= set(NEEDS)
    table = text_of("docs/index.md")
    assert all(f"`# needs: {word}`" in table for word in NEEDS)


def test_no_command_hides_in_a_block_that_is_not_run():
    hidden = [
        f"{block.place}: {line}"
        for block in BLOCKS
        if block.language not in RUN
        for line in block.code.splitlines()
        if COMMANDS.match(line)
    ]
    assert hidden == []


def test_no_command_hides_in_an_indented_block():
    hidden = []
    for page in PAGES:
        outside = re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        hidden += [
            f"{page}: {line}"
            for line in outside.splitlines()
            if line.startswith("    ") and COMMANDS.match(line)
        ]
    assert hidden == []


def test_commands_have_one_spelling():
    """And one page says why there is another."""
    other = re.compile(r"`(?:iblip )?export \w|-m export|\.venv/bin/(?:export|iblip)")
    found = {page for page in PAGES if other.search(text_of(page))}
    assert found == {"docs/install.md", "docs/troubleshooting.md"}


def shell_commands() -> Iterator[tuple[Block, list[str]]]:
    for block in BLOCKS:
        if block.language == "sh":
            for command in block.commands:
                words = shlex.split(command)
                while words and ASSIGNMENT.match(words[0] + " "):
                    words = words[1:]
                yield block, words


def test_every_command_of_ours_exists_and_has_its_options():
    """Of those that are run, too, though a run shows more."""
    unknown = []
    for block, words in shell_commands():
        if words[0] not in ("iblip", ".venv/bin/iblip"):
            continue
        command: click.Command = iblip
        context = click.Context(iblip, info_name="iblip")
        rest = words[1:]
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found is not None, f"{block.place}: {' '.join(words)}"
            command, rest = found, rest[1:]
            # With its own settings: a command remembers the first context's names of `--help`.
            own = command.context_settings
            context = click.Context(command, parent=context, info_name=command.name, **own)
        known = {name for one in command.get_params(context) for name in one.opts}
        known |= {name for one in command.get_params(context) for name in one.secondary_opts}
        rest = rest[: rest.index("--")] if "--" in rest else rest
        given = {word.partition("=")[0] for word in rest if word.startswith("--")}
        unknown += [f"{block.place}: {' '.join(words)}: {name}" for name in given - known]
    assert unknown == []


def test_every_extra_that_is_installed_exists():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = set()
    for page in PAGES:
        for extras in re.findall(r"(?:iblip|\.whl|'\.|\s\.)\[([a-z0-9,-]+)\]", text_of(page)):
            named |= set(extras.split(","))
    assert {"cpu", "gpu", "server"} <= named
    assert named <= set(project["optional-dependencies"])
    assert f"iblip-{project['version']}-py3" in text_of("docs/install.md")


@pytest.mark.e2e
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "page",
    [
        page if page in FIRST else pytest.param(page, marks=pytest.mark.exhaustive)
        for page in RUN_PAGES
    ],
)
def test_a_page_works_from_top_to_bottom(page: str, reader: Reader):
    for block in RUNNABLE:
        if block.page == page and shutil.which(PROGRAMS.get(block.language, sys.executable)):
            reader.follow(block)
