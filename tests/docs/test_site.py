"""The site: it builds without a warning, is whole, and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest

from iblip.serving.cli import iblip
from tests.docs.pages import ROOT, text_of

FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
"""Elements that load what their attribute names; a link loads only with some values of `rel`."""


class Loads(HTMLParser):
    """The addresses that a page loads, and those that it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.linked: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in FETCHED and given.get(FETCHED[tag]):
            self.loaded.add(given[FETCHED[tag]])
        if tag == "link" and not {"canonical", "next", "prev"} & set(given["rel"].split()):
            self.loaded.add(given["href"])
        if tag == "a" and given.get("href"):
            self.linked.add(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, as `make docs` builds it."""
    pytest.importorskip("zensical", reason="the extra docs is not installed")
    tree = tmp_path_factory.mktemp("site") / "tree"
    tree.mkdir()
    for name in ("iblip", "docs", "export", "engines", "serving", "model_repository"):
        (tree / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "mkdocs.yml", tree)
    for command in (
        [sys.executable, "docs/site/prepare.py", str(tree / "build/docs")],
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
    ):
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return tree / "build/site"


def test_every_page_of_the_navigation_is_there(site: Path) -> None:
    pages = re.findall(r"[\w/-]+\.md", text_of("mkdocs.yml").partition("\nnav:")[2])
    assert len(pages) > 25
    assert [page for page in pages if not (site / page).with_suffix(".html").is_file()] == []


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(site: Path) -> None:
    broken, pages = [], list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        if page.name == "404.html":
            continue
        found = Loads()
        found.feed(page.read_text(encoding="utf-8"))
        elsewhere = {address for address in found.loaded if re.match(r"(?:https?:)?//", address)}
        assert elsewhere == set(), page
        for address in found.loaded | found.linked:
            path = address.partition("#")[0].partition("?")[0]
            if path and not re.match(r"[a-z]+:", path) and not (page.parent / path).exists():
                broken.append(f"{page.relative_to(site)}: {address}")
    assert broken == []


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?https?:", sheet.read_text()), sheet


def test_the_references_have_every_command_and_every_public_name(site: Path) -> None:
    commands = (site / "reference/cli.html").read_text(encoding="utf-8")
    for name in set(iblip.list_commands(click.Context(iblip))) - {"export"}:
        assert f"iblip {name}" in commands
    python = (site / "reference/python.html").read_text(encoding="utf-8")
    import iblip as package

    missing = [name for name in package.__all__ if not re.search(rf"\b{name}\b", python)]
    assert missing == []
