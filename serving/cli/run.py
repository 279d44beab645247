"""`iblip run`: many images asked about, one line of JSON for each, and none twice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.engines.language_model.option_table import OPTIONS
from iblip.export.errors import OptionError
from iblip.serving.cli.commands import Command, is_quiet
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import DIRECTORY, PATH
from iblip.serving.cli.options import (
    CONNECTION,
    as_json,
    connection_from_flags,
    connection_options,
    generation_options,
    given_from_flags,
    original_options,
    refuse_connection,
    vision_cache_options,
)

if TYPE_CHECKING:
    from iblip.export.images import Reading

HEADINGS = {"Server": (*CONNECTION, "more_urls"), "Generation": tuple(OPTIONS)}


@click.command(
    cls=Command, short_help="Ask about many images; it can be continued.", headings=HEADINGS
)
@click.argument("input_", metavar="INPUT", type=PATH)
@click.option(
    "-o", "--output", required=True, type=PATH, help="File for the answers; JSONL, appended to."
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="The prompt for rows that have none of their own. Repeatable: each is asked.",
)
@click.option("--build", type=DIRECTORY, help="Run this build in this process: no server.")
@click.option("--threads", type=click.IntRange(1), help="With --build: threads of one operator.")
@vision_cache_options
@click.option(
    "--and-url",
    "more_urls",
    multiple=True,
    help="Another server of the same build. Repeatable.",
)
@click.option("--shard", metavar="I/N", default="1/1", help="Ask about one part of N of the rows.")
@original_options
@as_json
@connection_options
@generation_options
def command(
    input_: Path,
    output: Path,
    prompts: tuple[str, ...],
    build: Path | None,
    threads: int | None,
    vision_cache: Path | None,
    vision_cache_mib: int | None,
    more_urls: tuple[str, ...],
    shard: str,
    compat: str | None,
    preprocessing: Reading,
    json_: bool,
    **flags: Any,
) -> None:
    """Ask about every image of INPUT; write one line of JSON for each question.

    INPUT is a folder of images, JSONL or CSV with the fields image, prompt and id, a tar of
    WebDataset, or Parquet. Run again, the command goes on where it was ended. Questions that
    cannot be answered have a line with an error.
    """
    from iblip.engines.vision_cache.directory import cache_directory
    from iblip.serving.bulk.rows import Shard, read_rows
    from iblip.serving.bulk.running import Job, run_job
    from iblip.serving.bulk.targets import Targets, targets_of

    connection = connection_from_flags(flags)
    if build is not None:
        refuse_connection("--build")
    elif threads is not None:
        raise OptionError("--threads is given without --build; a server has its own")
    elif vision_cache is not None:
        raise OptionError("--vision-cache is given without --build; a server has its own")
    job = Job(
        options=given_from_flags(flags),
        prompts=prompts,
        compat=compat,
        preprocessing=preprocessing,
        shard=Shard.parse(shard),
    )
    rows = read_rows(input_)
    connections = [connection, *({**connection, "url": url} for url in more_urls)]
    cache = cache_directory(vision_cache, vision_cache_mib)
    with targets_of(connections, build, threads, vision_cache=cache) as opened:
        targets = Targets(opened)
        summary = run_job(rows, targets, output, job, progress=not is_quiet())
    if json_:
        echo_json(asdict(summary), indent=None)
    else:
        echo(f"{output}: {summary}")
