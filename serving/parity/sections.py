"""What the report's page shows for each stage: plots above its numbers, tables below them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape

from iblip.serving.parity.markup import Runs, collapsible, legend, limited_cell, table
from iblip.serving.parity.report import number
from iblip.serving.parity.svg import Interval, Line, interval_plot, line_plot


def _block_plots(runs: Runs) -> Iterator[str]:
    titles = dict.fromkeys(title for _, _, stage in runs for title in stage["blocks"])
    for title in titles:
        builds = [(i, label, stage["blocks"].get(title)) for i, label, stage in runs]
        shown = [(i, label, errors) for i, label, errors in builds if errors]
        labels = [_short(error["path"]) for error in shown[0][2]]
        lines = [
            Line(
                name=f"{label}: {words}",
                values=[float(error[key]) for error in errors],
                colour=index,
                style=style,
            )
            for index, label, errors in shown
            if len(errors) == len(labels)
            for key, style, words in (
                ("stream_limit", "band", "band of the stream"),
                ("own", "own", "own error"),
                ("stream", "stream", "error of the stream"),
            )
        ]
        yield f"<h3><code>{escape(title)}</code></h3>"
        yield f"<figure>{line_plot(f'Relative error of {title} by block', labels, lines)}"
        yield f"<figcaption>{legend(runs)}<br>{BLOCK_LEGEND}</figcaption></figure>"


BLOCK_LEGEND = (
    "Relative error by block: of the residual stream (solid), of the block alone, fed by"
    " transformers' own stream (dotted), and the band of the stream (pale)."
)


def _short(path: str) -> str:
    """The number at the end of a block's path, or an output's name."""
    last = path.rpartition(".")[2]
    return last if last.isdigit() else path.replace("_", " ").replace("cross key values", "cross")


def _block_tables(runs: Runs) -> Iterator[str]:
    for _, label, stage in runs:
        for title, errors in stage["blocks"].items():
            rows = [
                f"<tr><th><code>{escape(error['path'])}</code></th>"
                + limited_cell(error["own"], error["own_limit"])
                + limited_cell(error["stream"], error["stream_limit"])
                + f"<td>{number(float(error['max_abs']))}</td><td>{error['cosine']:.7f}</td></tr>"
                for error in errors
            ]
            head = "<th>Block</th><th>Own</th><th>Stream</th><th>Max abs</th><th>Cosine</th>"
            yield collapsible(f"{label}: {title}", table(head, rows))


def _accuracy_plot(runs: Runs) -> Iterator[str]:
    first = runs[0][2]
    low, high = first["reference_interval"]
    rows = [
        Interval(
            name="transformers",
            share=first["reference_right"],
            low=low,
            high=high,
            colour=len(runs),
        )
    ]
    for index, label, stage in runs:
        low, high = stage["interval"]
        rows.append(Interval(name=label, share=stage["right"], low=low, high=high, colour=index))
    yield f"<figure>{interval_plot('Right answers', rows)}<figcaption>Right answers of"
    yield f" {first['examples']:,}, with Wilson's interval of 95 %.</figcaption></figure>"


def _accuracy_details(runs: Runs) -> Iterator[str]:
    rows = []
    for _, label, stage in runs:
        low, high = (f"{100 * bound:+.2f}" for bound in stage["difference_interval"])
        rows.append(
            f"<tr><th>{escape(label)}</th><td>{stage['lost']}</td><td>{stage['won']}</td>"
            f"<td>{100 * stage['difference']:+.2f}</td><td>{low} to {high}</td></tr>"
        )
    head = "<th>Build</th><th>Lost</th><th>Won</th><th>Difference, points</th><th>95 %</th>"
    yield "<p>The same examples, paired: lost are those that only transformers answers correctly,"
    yield " won those that only the build answers correctly.</p>"
    yield table(head, rows)


def _text_details(runs: Runs) -> Iterator[str]:
    for _, label, stage in runs:
        if stage["different"]:
            rows = [
                "<tr>"
                + "".join(
                    f"<td>{escape(case[key])}</td>"
                    for key in ("example", "prompt", "text", "reference")
                )
                + "</tr>"
                for case in stage["different"]
            ]
            head = "<th>Example</th><th>Prompt</th><th>Build</th><th>transformers</th>"
            yield collapsible(f"{label}: answers that differ", table(head, rows))


def _rows_details(runs: Runs) -> Iterator[str]:
    for _, label, stage in runs:
        rows = [
            f"<tr><th><code>{escape(row['graph'])}</code></th><td>{escape(row['beside'])}</td>"
            + limited_cell(row["difference"], row["limit"])
            + "</tr>"
            for row in stage["rows"]
        ]
        head = "<th>Graph</th><th>The row</th><th>Change</th>"
        yield collapsible(f"{label}: every row", table(head, rows))


def _pixel_details(runs: Runs) -> Iterator[str]:
    _, _, stage = runs[0]
    rows = [
        f"<tr><th>{escape(v['variant'])}</th><td>{v['images']}</td><td>{v['values']:,}</td>"
        f"<td>{v['different']}</td><td>{v['largest']}</td></tr>"
        for v in stage["variants"]
    ]
    head = "<th>Images</th><th>Number</th><th>Values</th><th>Different</th><th>By at most</th>"
    yield collapsible("modes and sizes", table(head, rows))


def _first_details(runs: Runs) -> Iterator[str]:
    for _, label, stage in runs:
        rows = [
            f"<tr><th>{escape(row['name'])}</th><td>{number(float(row['divergence']))}</td>"
            f"<td>{'same' if row['same'] else 'different'}</td>"
            f"<td>{number(float(row['max_abs']))}</td></tr>"
            for row in stage["examples"]
        ]
        head = "<th>Example</th><th>Divergence, nats</th><th>Token</th><th>Max abs</th>"
        yield collapsible(f"{label}: every example", table(head, rows))


Draw = Callable[[Runs], Iterator[str]]

PLOTS: Mapping[str, Draw] = {
    **dict.fromkeys(("vision_encoder", "qformer", "language_model"), _block_plots),
    "accuracy": _accuracy_plot,
}
"""By stage: what is drawn above its numbers."""

DETAILS: Mapping[str, Draw] = {
    **dict.fromkeys(("vision_encoder", "qformer", "language_model"), _block_tables),
    "preprocessing": _pixel_details,
    "first_token": _first_details,
    "accuracy": _accuracy_details,
    "text": _text_details,
    "beams": _text_details,
    "batching": _rows_details,
    "padding": _rows_details,
}
"""By stage: what is shown below them."""
