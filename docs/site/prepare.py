"""Writes the source of the site: the pages of docs/, and those that are generated.

    python docs/site/prepare.py build/docs

- The command-line reference is what `--help` prints, for every command.
- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md of the repository become pages.
- The decision records get an index.
- A link to a file that is no page becomes the path of that file.

A link to a file or a heading that does not exist ends the script, so that the site does not depend
on what its generator checks.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

WIDTH = 92
"""Columns of the help texts."""

ADOPTED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages that lie beside docs/."""

LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)", re.MULTILINE)


def pages() -> dict[str, str]:
    """Every page of the site, by its path in the repository; those of docs/ as they are."""
    written = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(DOCS.rglob("*.md"))
    }
    adopted = {name: (ROOT / name).read_text(encoding="utf-8") for name in ADOPTED}
    made = {"docs/reference/cli.md": command_line(), "docs/decisions/index.md": decisions()}
    return {**written, **adopted, **made}


def prepare(target: Path) -> None:
    """Writes every page and every file of docs/ that a page shows.

    Raises:
        SystemExit: naming every link that leads nowhere.
    """
    sources = pages()
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(DOCS, target, ignore=shutil.ignore_patterns("site", "*.md"))
    faults: list[str] = []
    for path, text in sources.items():
        place = target / path.removeprefix("docs/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(with_links(path, text, sources, faults), encoding="utf-8")
    if faults:
        sys.exit("\n".join(["links that lead nowhere:", *faults]))


def with_links(path: str, text: str, sources: Mapping[str, str], faults: list[str]) -> str:
    """A page whose links to files of the repository are paths, as these are no pages."""

    def replaced(match: re.Match[str]) -> str:
        label, target = match.groups()
        name, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            return match.group()
        place = posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) if name else path
        place = f"{place}/index.md" if f"{place}/index.md" in sources else place
        if place in sources:
            if anchor and anchor not in anchors(sources[place]):
                faults.append(f"{path}: {target}: there is no such heading")
            start = posixpath.dirname(path.removeprefix("docs/")) or "."
            there = posixpath.relpath(place.removeprefix("docs/"), start)
            return f"[{label}]({there if name else ''}{'#' if anchor else ''}{anchor})"
        if not (ROOT / place).exists():
            faults.append(f"{path}: {target}: there is no such file")
        if place.startswith("docs/") and not place.endswith(".md"):
            return match.group()
        return f"`{place}`" if label.strip("`") in (place, name) else f"{label} (`{place}`)"

    pieces, end = [], 0
    for fence in FENCE.finditer(text):
        pieces += [LINK.sub(replaced, text[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*pieces, LINK.sub(replaced, text[end:])])


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown and GitHub both make them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"[^\w\s-]", "", LINK.sub(r"\1", heading).replace("`", "")).strip().lower()
        found.add(re.sub(r"[\s-]+", "-", words))
    return found


def title(text: str) -> str:
    """The heading of a page."""
    return text.split("\n", 1)[0].removeprefix("# ")


def decisions() -> str:
    """A list of all decision records."""
    records = sorted((DOCS / "decisions").glob("0*.md"))
    lines = [f"- [{title(path.read_text(encoding='utf-8'))}]({path.name})" for path in records]
    intro = "Each record says what was decided, why, and what was tried instead."
    return "\n".join(["# Decisions", "", intro, "", *lines, ""])


def command_line() -> str:
    """Every command with what its `--help` prints."""
    from iblip.serving.cli import iblip

    lines = [
        "# Command line",
        "",
        "This page is generated: each block is what `--help` prints. Options can also be set in",
        "the environment: `IBLIP_SERVE_HTTP_PORT=9000` is `iblip serve --http-port 9000`.",
        "",
    ]
    for path, text in helps(iblip, "iblip"):
        lines += [f"## {path}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def helps(
    command: click.Command, path: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The path and the help of a command and of those below it; `export` repeats others."""
    name = path.split()[-1]
    context = click.Context(command, info_name=name, parent=parent, terminal_width=WIDTH)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden and f"{path} {name}" != "iblip export":
                yield from helps(below, f"{path} {name}", context)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]))
