"""The file into which everything that a transfer finds out goes, as soon as it is known.

One JSON object a line: `{"record": NAME, "line": {…}}`, where the lines of one name are a record of
`iblip prove`. A machine that takes few files back takes this one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

FACTS = "facts.jsonl"


class Facts:
    """Appends to the file of facts, from any thread. A line is written before `write` returns.

    Args:
        folder: that is brought back; the file in it is appended to.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / FACTS).open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, record: str, line: Mapping[str, Any]) -> None:
        """Appends one line of a record."""
        with self._lock:
            text = json.dumps({"record": record, "line": dict(line)}, ensure_ascii=False)
            self._file.write(text + "\n")
            self._file.flush()


def read_facts(file: Path) -> dict[str, list[str]]:
    """The lines of each record, by its name; a last line that is not whole is passed over.

    Raises:
        ValueError: it is no file of facts.
    """
    records: dict[str, list[str]] = {}
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, text in enumerate(lines, 1):
        try:
            entry = json.loads(text)
        except ValueError:
            if number < len(lines):
                raise ValueError(f"line {number} of {file} is not JSON") from None
            continue
        records.setdefault(entry["record"], []).append(
            json.dumps(entry["line"], ensure_ascii=False)
        )
    return records
