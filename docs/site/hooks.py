"""What MkDocs adds to the pages of docs/ when it makes the site.

- The command-line reference is what `--help` prints, for every command.
- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md of the repository become pages.
- A list of the decision records becomes their index, and they become its sub-pages.
- A link to a file outside docs/ becomes the path of that file in the repository: it must exist.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 92
"""Columns of the help texts."""

ADOPTED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Files beside docs/ that are pages of the site."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are generated."""
    pages = {
        "reference/cli.md": command_line(),
        "decisions/index.md": decisions(),
        **{name: (ROOT / name).read_text(encoding="utf-8") for name in ADOPTED},
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_config(config: Any) -> Any:
    """Puts the decision records below their index."""
    records = sorted((ROOT / "docs/decisions").glob("0*.md"))
    for section in config.nav:
        for entries in section.values():
            for entry in entries if isinstance(entries, list) else ():
                if "Decisions" in entry:
                    entry["Decisions"] = [
                        {"Overview": "decisions/index.md"},
                        *({title(path): f"decisions/{path.name}"} for path in records),
                    ]
                if "Security" in entry:
                    entry["Security"] = [
                        {"Security of a server": "security.md"},
                        {"Reports and threat model": "SECURITY.md"},
                    ]
    return config


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turns links to files of the repository that are no pages into their paths."""
    folder = "" if page.file.src_uri in ADOPTED else posixpath.dirname(page.file.src_uri)
    base = "" if page.file.src_uri in ADOPTED else "docs"

    def replaced(match: re.Match[str]) -> str:
        text, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match.group()
        place = posixpath.normpath(posixpath.join(base, folder, path))
        page_path = posixpath.relpath(place, "docs") if place.startswith("docs/") else place
        if page_path in files.src_uris or place in ADOPTED:
            page_path = place if place in ADOPTED else page_path
            there = posixpath.relpath(page_path, folder or ".")
            return f"[{text}]({there}{'#' + anchor if anchor else ''})"
        if not (ROOT / place).exists():
            return match.group()  # MkDocs reports it
        return f"{text} (`{place}`)" if text.strip("`") != place else f"`{place}`"

    return LINK.sub(replaced, markdown)


def title(path: Path) -> str:
    """The heading of a page."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def decisions() -> str:
    """A list of all decision records."""
    records = sorted((ROOT / "docs/decisions").glob("0*.md"))
    lines = [f"- [{title(path)}]({path.name})" for path in records]
    intro = "Each record says what was decided, why, and what was tried instead."
    return "\n".join(["# Decisions", "", intro, "", *lines, ""])


def command_line() -> str:
    """Every command with what its `--help` prints."""
    from iblip.serving.cli import cli

    lines = [
        "# Command line",
        "",
        "This page is generated from the commands: each block is what `--help` prints.",
        "Every option can also be set in the environment:"
        " `IBLIP_SERVE_HTTP_PORT=9000` is `iblip serve --http-port 9000`.",
        "",
    ]
    for path, help_text in helps(cli, "iblip"):
        lines += [f"## {path}", "", "```text", help_text.rstrip(), "```", ""]
    return "\n".join(lines)


def helps(
    command: click.Command, path: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The path and the help of a command and of those below it."""
    context = click.Context(
        command, info_name=path.split()[-1], parent=parent, terminal_width=WIDTH
    )
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from helps(below, f"{path} {name}", context)
