"""The parity report as one self-contained HTML page, without scripts, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files

from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.serving.parity.markup import (
    CLASSES,
    Json,
    Runs,
    badge,
    heads,
    key,
    size,
    table,
    value,
)
from iblip.serving.parity.sections import DETAILS, PLOTS
from iblip.serving.parity.stages import STAGES


def page_from_report(report: Json) -> str:
    """The page for a report's JSON (`Report.to_json`), with the builds side by side."""
    style = files("iblip.serving.parity").joinpath("page.css").read_text(encoding="utf-8")
    name = escape(report["checkpoint"])
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Parity of {name}</title><style>{style}</style></head><body><main>",
            f"<h1>Parity of {name} {badge(report['passed'])}</h1>",
            *_verdict(report),
            *_faults(report),
            *_summary(report),
            *_samples(report),
            *_facts(report),
            *(section for stage in STAGES for section in _stage(report, stage)),
            "</main></body></html>\n",
        ]
    )


def _verdict(report: Json) -> Iterator[str]:
    kind = CLASSES[report["passed"]]
    yield f'<p class="verdict {kind}">{escape(report["verdict"])}</p>'
    if report["synthetic"]:
        yield f'<p class="callout">{escape(MEANS_NOTHING)}</p>'


def _facts(report: Json) -> Iterator[str]:
    tools = ", ".join(f"{tool} {version}" for tool, version in report["tools"].items())
    reference = report["reference"]
    how = f"transformers, {reference['kind']} ({reference['reason']})"
    facts = {
        "Checkpoint": report["model"],
        "Reference": how,
        "Examples": f"{report['examples']:,}",
        "Created": f"{report['created']}, {tools}",
    }
    items = (f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    yield f"<h2>What was compared</h2><dl>{''.join(items)}</dl>"


def _faults(report: Json) -> Iterator[str]:
    for build in report["builds"]:
        if elsewhere := build.get("elsewhere"):
            yield f'<p class="callout">{escape(build["label"])}: {escape(elsewhere)}</p>'
        if build["first_out"]:
            label, path = escape(build["label"]), escape(build["first_out"])
            yield (
                f'<p class="callout">{label}: the error leaves its band in <code>{path}</code></p>'
            )


def _summary(report: Json) -> Iterator[str]:
    """A table with a row for each stage and a column for each build."""
    builds = report["builds"]
    head = "".join(
        f"<th>{key(i)}{escape(build['label'])}<br><small>{escape(build['build'])}</small></th>"
        for i, build in enumerate(builds)
    )
    rows = [
        f"<tr><th>{title}</th>{''.join(f'<td>{show(build)}</td>' for build in builds)}</tr>"
        for title, show in FIGURES.items()
        if any(map(show, builds))
    ]
    for name, stage in STAGES.items():
        if any(name in build["stages"] for build in builds):
            cells = "".join(_cell(build["stages"].get(name)) for build in builds)
            rows.append(f'<tr><th><a href="#{name}">{escape(stage.title)}</a></th>{cells}</tr>')
    yield table(f"<th></th>{head}", rows)


def _answer_time(build: Json) -> str:
    seconds = build["answer_s"]
    return "" if seconds is None else f"{1000 * seconds:.3g} ms"


FIGURES: Mapping[str, Callable[[Json], str]] = {
    "Size on disk, weights included": lambda build: size(build["bytes"]),
    "Time of a greedy answer, median, on this CPU": _answer_time,
}
"""Rows of the summary that have no limit."""


def _samples(report: Json) -> Iterator[str]:
    """A card for each sample: image, question, and everybody's answer."""
    if not report["samples"]:
        return
    yield "<h2>Examples</h2><div class='samples'>"
    for sample in report["samples"]:
        rows = [("transformers", sample["reference"], True)]
        rows += [
            (build["label"], text, text == sample["reference"])
            for build, text in zip(report["builds"], sample["texts"], strict=True)
        ]
        if sample["answer"] is not None:
            rows.append(("right answer", sample["answer"], True))
        items = "".join(
            f"<dt>{escape(who)}</dt><dd{'' if same else ' class=bad'}>{escape(text)}</dd>"
            for who, text, same in rows
        )
        yield (
            f'<figure><img src="{escape(sample["image"])}" alt="{escape(sample["example"])}">'
            f"<figcaption>{escape(sample['prompt']) or '(no prompt)'}</figcaption>"
            f"<dl>{items}</dl></figure>"
        )
    yield "</div>"


def _cell(stage: Json | None) -> str:
    if stage is None:
        return "<td></td>"
    if stage["passed"] is None:
        return f"<td>{badge(None)} <small>{escape(stage['skipped'])}</small></td>"
    return f"<td>{badge(stage['passed'])}{_worst(stage['checks'])}</td>"


def _worst(checks: Sequence[Json]) -> str:
    """The first check that fails, or else the first that has a limit."""
    limited = [check for check in checks if check["limit"] is not None]
    failed = [check for check in limited if not check["passed"]]
    if not limited:
        return ""
    check = (failed or limited)[0]
    return f"<br><small>{escape(check['name'])}</small><br>{value(check)}"


def _stage(report: Json, name: str) -> Iterator[str]:
    runs = [
        (index, build["label"], build["stages"][name])
        for index, build in enumerate(report["builds"])
        if build["stages"].get(name, {}).get("passed") is not None
    ]
    if not runs:
        return
    yield f'<section id="{name}"><h2>{escape(STAGES[name].title)}</h2>'
    yield from PLOTS.get(name, _nothing)(runs)
    yield _checks(runs)
    yield from DETAILS.get(name, _nothing)(runs)
    yield "</section>"


def _nothing(_: Runs) -> Iterator[str]:
    yield from ()


def _checks(runs: Runs) -> str:
    """A table with a row for each check; builds that measured the same quantity share a row."""
    names = list(dict.fromkeys(check["name"] for _, _, stage in runs for check in stage["checks"]))
    rows = []
    for name in names:
        by_build = [
            next((c for c in stage["checks"] if c["name"] == name), None) for _, _, stage in runs
        ]
        cells = "".join(f"<td>{value(check) if check else ''}</td>" for check in by_build)
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return table(f"<th>Measured</th>{heads(runs)}", rows)
