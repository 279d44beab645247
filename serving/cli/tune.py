"""`iblip tune`: which slots, batch and delay a build should be served with on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.export.errors import OptionError
from iblip.serving.cli.benching import (
    GENERATED,
    Positive,
    mix_from_flags,
    mix_options,
    objective_from_flags,
    objective_options,
    timeout_option,
)
from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, table_lines
from iblip.serving.cli.kinds import DIRECTORY
from iblip.serving.cli.options import as_json, triton_option

if TYPE_CHECKING:
    from iblip.serving.bench.tuning import Tuning

HEADINGS = {
    "Requests": GENERATED,
    "Load": ("concurrency", "rate", "seconds", "minutes", "timeout_s"),
    "Objective": ("slo", "slo_share"),
}


@click.command(cls=Command, short_help="Measure a build under several settings.", headings=HEADINGS)
@click.argument("build", type=DIRECTORY)
@mix_options
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1, 10_000),
    help="Callers, each with one request under way. Default: twice the slots of the build.",
)
@click.option(
    "--rate",
    type=Positive(100_000),
    help="So many requests a second, as in `iblip bench`, instead of -c; with --slo.",
)
@click.option(
    "--seconds",
    default=10.0,
    show_default=True,
    type=Positive(86_400),
    help="Of each measurement; every setting has two.",
)
@click.option(
    "--minutes",
    default=10.0,
    show_default=True,
    type=Positive(10_000),
    help="After which no further measurement begins.",
)
@timeout_option
@objective_options
@triton_option
@as_json
def command(
    build: Path,
    concurrency: int | None,
    rate: float | None,
    seconds: float,
    minutes: float,
    timeout_s: float,
    triton: Path | None,
    json_: bool,
    **flags: Any,
) -> None:
    """Measure BUILD with other slots, batches and queue delays, and recommend a setting.

    Each setting is served with Triton on free ports, in turns with the others, under the same load.
    BUILD itself is not changed. The recommended setting has the highest goodput under --slo, or the
    most answers a second. docs/bench.md explains the table.
    """
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.bench.loads import Closed, Open
    from iblip.serving.bench.settings import setting_of
    from iblip.serving.bench.tuning import TuneOptions, tune
    from iblip.serving.cli.progress import command_progress

    Manifest.read(build)
    if rate is not None and concurrency is not None:
        raise OptionError("--rate and --concurrency: give one of them")
    mix, objective = mix_from_flags(flags), objective_from_flags(flags)
    if rate is not None and objective is None:
        raise OptionError(
            "--rate needs --slo: all settings that keep up with it answer as many requests"
        )
    load: Closed | Open
    if rate is not None:
        load = Open(rate=rate, seconds=seconds)
    else:
        callers = concurrency or 2 * setting_of(build).slots
        load = Closed(concurrency=callers, seconds=seconds)
    options = TuneOptions(
        load=load,
        mix=mix,
        objective=objective,
        limit_s=60 * minutes,
        timeout_s=timeout_s,
        triton=triton,
    )
    tuning = tune(build, options, command_progress())
    if json_:
        echo_json(tuning.to_json())
    else:
        echo("\n".join(_lines(tuning)))


def _lines(tuning: Tuning) -> Iterator[str]:
    from iblip.serving.bench.tuning import POINT, TURNS, lines_of_tuning

    yield from table_lines(list(lines_of_tuning(tuning)))
    yield f"Times are {POINT}; * no other is better in every respect; -> recommended."
    for setting, reason in tuning.left_out.items():
        yield f"not measured: {setting.text(tuning.own.setting)}: {reason}"
    if len(tuning.trials[-1].turns) < TURNS:
        yield "The time was over before the second turn was complete: raise --minutes."
    if not tuning.steps():
        yield "No setting is better than the build's own in both turns by more than they differ."
        return
    yield "To serve the build with the recommended setting:"
    yield from (f"  {step}" for step in tuning.steps())
