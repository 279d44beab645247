"""The report's two files: a page, and the JSON that it was drawn from beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from iblip.export.errors import OptionError
from iblip.serving.parity.html import page_from_report
from iblip.serving.parity.report import Report

FOLDER = "verification"
"""Of a build directory: where its last report is."""


def page_of(directory: Path) -> Path:
    """Where the report of the build in `directory` goes unless the caller says otherwise."""
    return directory / FOLDER / "report.html"


def check_page(page: Path) -> None:
    """Refuses a place that nothing can be written to, before any work is done.

    Raises:
        OptionError: it is not called `.html`, or its directory is missing or read-only.
    """
    if page.suffix != ".html":
        raise OptionError(f"--html is {page}; wanted a file whose name ends in .html")
    folder = page.parent.parent if page.parent.name == FOLDER else page.parent
    if not os.access(folder, os.W_OK):
        raise OptionError(f"--html is {page}, and {folder} cannot be written to; name another")


def write_report(report: Report, page: Path) -> tuple[Path, Path]:
    """Writes the page, and the JSON with the suffix `.json`; returns both. Each appears whole."""
    page.parent.mkdir(exist_ok=True)
    found, data = report.to_json(), page.with_suffix(".json")
    for path, text in (
        (page, page_from_report(found)),
        (data, json.dumps(found, indent=2, ensure_ascii=False) + "\n"),
    ):
        half = path.with_name(f".{path.name}.{os.getpid()}")
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    return page, data
