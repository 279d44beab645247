"""The report's two files: the page, and beside it the JSON that it was drawn from."""

from __future__ import annotations

import json
import os
from pathlib import Path

from iblip.export.errors import OptionError
from iblip.serving.parity.html import page_from_report
from iblip.serving.parity.report import Report

FOLDER = "verification"
"""The folder of a build directory that holds its latest report."""


def page_of(directory: Path) -> Path:
    """The default path for the report of the build in `directory`."""
    return directory / FOLDER / "report.html"


def check_page(page: Path) -> None:
    """Refuses a path that cannot be written, before any work is done.

    Raises:
        OptionError: its suffix is not `.html`, it or its `.json` is a directory, or its own
            directory is missing or read-only.
    """
    if page.suffix != ".html":
        raise OptionError(f"--html is {page}; expected a file whose name ends in .html")
    if directory := next((one for one in (page, page.with_suffix(".json")) if one.is_dir()), None):
        raise OptionError(f"--html is {page}, but {directory} is a directory; name another file")
    folder = page.parent.parent if page.parent.name == FOLDER else page.parent
    if not folder.is_dir():
        raise OptionError(f"--html is {page}, but there is no directory {folder}; create it first")
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--html is {page}, but {folder} is not writable; name another file")


def write_report(report: Report, page: Path) -> tuple[Path, Path]:
    """Writes the page and its `.json`, each in one atomic step; returns their paths."""
    page.parent.mkdir(exist_ok=True)
    content, data = report.to_json(), page.with_suffix(".json")
    for path, text in (
        (page, page_from_report(content)),
        (data, json.dumps(content, indent=2, ensure_ascii=False) + "\n"),
    ):
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return page, data
