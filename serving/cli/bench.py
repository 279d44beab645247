"""`iblip bench`: how fast a build answers, or a server that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.export.errors import OptionError, ServingError
from iblip.serving.cli.benching import (
    GENERATED,
    Positive,
    Target,
    mix_from_flags,
    mix_options,
    objective_from_flags,
    objective_options,
    served,
    timeout_option,
)
from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, echo_verdicts
from iblip.serving.cli.kinds import PATH
from iblip.serving.cli.options import (
    CONNECTION,
    as_json,
    connection_from_flags,
    connection_options,
    triton_option,
)

if TYPE_CHECKING:
    from iblip.serving.bench.figures import Figures
    from iblip.serving.bench.objective import Objective
    from iblip.serving.bench.running import Bench
    from iblip.serving.bench.searching import Search

SECONDS = 20.0

HEADINGS = {
    "Requests": GENERATED,
    "Load": ("requests", "concurrency", "rate", "searches", "seconds", "warm_up", "timeout_s"),
    "Objective": ("slo", "slo_share"),
    "Results": ("plot", "write_inputs", "json_"),
    "Server": (*CONNECTION, "triton"),
}


@click.command(
    cls=Command, short_help="Measure how fast a build or a server answers.", headings=HEADINGS
)
@click.argument("target", metavar="[BUILD|HOST:PORT]", required=False, type=Target())
@mix_options
@click.option(
    "-n", "--requests", type=click.IntRange(1), help="Requests of a closed loop. Default: 64."
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 10_000),
    help="Callers of a closed loop, each with one request under way. Default: 8.",
)
@click.option(
    "--rate",
    type=Positive(100_000),
    help="An open loop: so many requests a second on average, at random times (Poisson).",
)
@click.option(
    "--search", "searches", is_flag=True, help="Find the highest --rate that meets the --slo."
)
@click.option(
    "--seconds",
    type=Positive(86_400),
    help="Of arrivals, at each rate. Default: 20.",
)
@click.option(
    "--warm-up",
    default=8,
    show_default=True,
    type=click.IntRange(0, 10_000),
    help="Requests at once before the clock starts.",
)
@timeout_option
@objective_options
@click.option("--plot", type=PATH, metavar="PNG", help="Draw the figures; needs matplotlib.")
@click.option(
    "--write-inputs",
    type=PATH,
    metavar="DIR",
    help="Write the requests for perf_analyzer and AIPerf, and measure nothing.",
)
@connection_options
@triton_option
@as_json
def command(
    target: Path | str | None,
    requests: int | None,
    concurrency: int | None,
    rate: float | None,
    searches: bool,
    seconds: float | None,
    warm_up: int,
    timeout_s: float,
    plot: Path | None,
    write_inputs: Path | None,
    triton: Path | None,
    json_: bool,
    **flags: Any,
) -> None:
    """Measure how fast BUILD answers, or the server at HOST:PORT (or --url).

    A BUILD is served with Triton on free ports meanwhile. A closed loop keeps -c requests under
    way; with --rate requests arrive whether or not earlier ones have been answered, as from many
    users. Times count from when a request was due. docs/bench.md explains the figures.
    """
    from iblip.serving.bench.figures import Figures
    from iblip.serving.bench.inputs import check_directory
    from iblip.serving.bench.loads import Closed, Open
    from iblip.serving.bench.plot import check_plot, plot_run
    from iblip.serving.bench.running import Bench, check_answered
    from iblip.serving.bench.searching import check_searchable
    from iblip.serving.cli.progress import command_progress

    _check_together(rate, searches, requests, concurrency, seconds)
    if write_inputs is not None and (searches or plot is not None):
        raise OptionError("--write-inputs measures nothing; leave --search and --plot out")
    mix, objective = mix_from_flags(flags), objective_from_flags(flags)
    if searches:
        check_searchable(objective)
    if plot is not None:
        check_plot(plot)
    if write_inputs is not None:
        check_directory(write_inputs)
    load: Closed | Open = Closed(concurrency=concurrency or 8, requests=requests or 64)
    if rate is not None:
        load = Open(rate=rate, seconds=seconds or SECONDS)
    connection, progress = connection_from_flags(flags), command_progress()
    with (
        served(target, connection, triton) as server,
        Bench(server, mix, progress, timeout_s=timeout_s) as bench,
    ):
        if write_inputs is not None:
            _write(bench, load, write_inputs, json_)
            return
        bench.warm_up(warm_up)
        if searches:
            assert objective is not None
            _search(bench, objective, seconds or SECONDS, concurrency or 8, plot, json_)
            return
        run = bench.run(load)
    check_answered(run)
    figures = Figures(run, objective)
    if not figures.answered:
        raise ServingError(_none_answered(figures.to_json(), timeout_s))
    if plot is not None:
        plot_run(plot, figures)
    _show(figures, json_)


def _none_answered(counted: Mapping[str, Any], timeout_s: float) -> str:
    fates = ("timed_out", "refused", "failed")
    found = ", ".join(f"{counted[fate]} {fate.replace('_', ' ')}" for fate in fates)
    return (
        f"none of {counted['requests']} requests was answered ({found}), so there are no times. "
        f"Raise --timeout, which is {timeout_s:g} s, or ask for less at once (-c, --rate)."
    )


def _check_together(
    rate: float | None,
    searches: bool,
    requests: int | None,
    concurrency: int | None,
    seconds: float | None,
) -> None:
    is_open = rate is not None or searches
    for given, name, fits, where in (
        (rate, "--rate", not searches, "without --search, which finds it"),
        (requests, "--requests", not is_open, "in a closed loop; --seconds limits an open one"),
        (concurrency, "--concurrency", rate is None, "in a closed loop, without --rate"),
        (seconds, "--seconds", is_open, "with --rate or --search"),
    ):
        if given is not None and not fits:
            raise OptionError(f"{name} is given; it is used {where}")


def _search(
    bench: Bench,
    objective: Objective,
    seconds: float,
    concurrency: int,
    plot: Path | None,
    json_: bool,
) -> None:
    from iblip.serving.bench.plot import plot_search
    from iblip.serving.bench.searching import search

    found = search(bench, objective, seconds=seconds, concurrency=concurrency)
    if plot is not None:
        plot_search(plot, found)
    _show(found.found or found.tried[-1], json_, found)


def _show(figures: Figures, json_: bool, search: Search | None = None) -> None:
    from iblip.serving.bench.text import lines_of, lines_of_search

    if figures.advice:
        echo_verdicts(f"warning: {figures.advice}", err=True)
    if json_:
        echo_json({**figures.to_json(), "search": search and search.to_json()})
    else:
        echo("\n".join(lines_of(figures) if search is None else lines_of_search(search)))


def _write(bench: Bench, load: Any, directory: Path, json_: bool) -> None:
    from iblip.serving.bench.inputs import COMMANDS, FILES, write_inputs
    from iblip.serving.bench.loads import Open

    count = len(load.times()) if isinstance(load, Open) else load.requests
    write_inputs(directory, [bench.requests[number] for number in range(count)])
    if json_:
        echo_json({"directory": str(directory), "files": list(FILES), "requests": count})
    else:
        echo(f"{directory}: {count} requests in {' and '.join(FILES)}. Ask them with")
        echo(COMMANDS.format(directory=directory))
