"""`export verify`: the staged comparison of a build with transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from serving.cli.options import as_json, source_options

TITLES: Mapping[str, str] = {"text": "greedy", "beams": "5-beam"}
"""What a report of answers is called."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@source_options
@click.option(
    "--examples",
    type=click.Path(path_type=Path),
    help="Directory with examples.jsonl. Default: the checkpoint's own.",
)
@click.option("--limit", type=int, help="Ask only so many of the examples.")
@as_json
def command(
    directory: Path,
    model: str | None,
    revision: str | None,
    parts: tuple[str, ...],
    examples: Path | None,
    limit: int | None,
    json_: bool,
) -> None:
    """Compare the build in DIRECTORY with transformers: every graph, then answers, greedy ones and
    those of five beams."""
    from export.errors import VerificationError
    from export.source import parts_from_words
    from serving.cli.progress import Terminal
    from serving.cli.quiet import quiet_libraries
    from serving.verification import source_of_build, verify_build

    quiet_libraries()
    source = source_of_build(directory, model, revision, parts_from_words(parts))
    report = verify_build(directory, Terminal(), source=source, examples=examples, limit=limit)
    click.echo(json.dumps(report, indent=2, ensure_ascii=False) if json_ else _table(report))
    if not report["passed"]:
        raise VerificationError(f"{directory} does not keep its limits; see the report above")


def _table(report: Mapping[str, Any]) -> str:
    from export.manifest import MEANS_NOTHING

    lines = [MEANS_NOTHING] if report["synthetic"] else []
    lines.append(f"{'graph':32} {'cases':>5} {'max abs':>10} {'cosine':>12}")
    for name, found in report["graphs"].items():
        verdict = "ok" if found["passed"] else "FAILED"
        numbers = f"{found['cases']:5} {found['max_abs']:10.2e} {found['cosine']:12.8f}"
        lines.append(f"{name:32} {numbers}  {verdict}")
    if "skipped" in report["text"]:
        return "\n".join([*lines, f"answers: not compared, {report['text']['skipped']}"])
    for way, title in TITLES.items():
        lines += _answers(title, report[way])
    return "\n".join(lines)


def _answers(title: str, text: Mapping[str, Any]) -> list[str]:
    verdict = "ok" if text["passed"] else "FAILED"
    share = f"{text['same_text']} of {text['examples']}"
    lines = [
        f"same {title} text as transformers: {share} (wanted {text['wanted_agreement']:.0%})"
        f"  {verdict}"
    ]
    if "exact_match" in text:
        lines.append(
            f"right answers: {text['exact_match']:.1%};"
            f" transformers: {text['reference_exact_match']:.1%}"
        )
    return lines + [f"  differs: {case}" for case in text["different"]]
