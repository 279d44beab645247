"""Reads what a GPU machine sent back: one record of `iblip prove` for each build, and a table.

    python -m benchmarks.gpu.records facts.jsonl FOLDER

The records are as `iblip prove` writes them; the pages beside them are those of `--html`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from benchmarks.gpu.facts import read_facts
from iblip.serving.proving.record import Record


def write_records(facts: Path, folder: Path) -> dict[str, Record]:
    """Writes each record of a file of facts to `folder/NAME.jsonl`; returns them by name.

    Raises:
        ValueError: the file has no such records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name, lines in read_facts(facts).items():
        records[name] = Record.from_lines(lines)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return records


def table_of(records: Iterable[tuple[str, Record]]) -> Iterator[str]:
    """Markdown, a row for each record: what ran where, the verdict, and what was wrong."""
    yield "| record | precision | GPU, driver | stages that ended | verdict | |"
    yield "|---|---|---|--:|---|---|"
    for name, record in records:
        head = record.head
        gpu = f"{head['gpu']['name']}, {head['driver']}" if head["gpu"] else "none"
        ended = sum(stage["ended"] == "done" for stage in record.stages.values())
        precision = ", ".join(dict.fromkeys(head["precision"].values()))
        remark = "; ".join(record.failures) or record.reason
        yield f"| {name} | {precision} | {gpu} | {ended} | {record.verdict} | {remark} |"


@click.command()
@click.argument("facts", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path))
def main(facts: Path, folder: Path) -> None:
    """Write the records in FACTS to FOLDER, with a page for each, and print their table."""
    from iblip.serving.proving.page import write_page

    records = write_records(facts, folder)
    for name, record in records.items():
        write_page(record, folder / f"{name}.jsonl")
    click.echo("\n".join(table_of(records.items())))


if __name__ == "__main__":
    main()
