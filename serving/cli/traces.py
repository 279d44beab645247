"""`iblip traces`: the traced graphs that builds share."""

from __future__ import annotations

from pathlib import Path

import click

from iblip.serving.cli.commands import Commands
from iblip.serving.cli.formatting import age_of, count_of, echo, echo_json, size_of, table_lines
from iblip.serving.cli.options import as_json, prune_options


@click.group(cls=Commands, short_help="Manage traced graphs.")
def command() -> None:
    """Manage traced graphs, which builds of the same architecture share."""


@command.command("list")
@as_json
def list_(json_: bool) -> None:
    """List the traced graphs in the cache, last used first."""
    from iblip.export.system.trace_files import list_traces

    directory = _directory()
    files = list_traces(directory)
    if json_:
        rows = [file.to_json() for file in files]
        echo_json({"directory": str(directory), "traces": rows})
        return
    total = size_of(sum(file.size for file in files))
    echo(f"{directory}: {count_of(len(files), 'trace')}, {total}")
    rows_ = [(file.key[:12], size_of(file.size), f"{age_of(file.used)} ago") for file in files]
    for line in table_lines([("key", "size", "used"), *rows_] if rows_ else []):
        echo(line)


@command.command()
@prune_options("traces")
@as_json
def prune(
    older_than: str | None, max_size: str | None, everything: bool, dry_run: bool, json_: bool
) -> None:
    """Remove traced graphs. A build that needs one traces it again."""
    from iblip.engines.cache.pruning import policy_from_words
    from iblip.export.system.trace_files import list_traces

    directory = _directory()
    files = list_traces(directory)
    removed = policy_from_words(older_than, max_size, everything).choose(files)
    freed, total = sum(file.size for file in removed), sum(file.size for file in files)
    if not dry_run:
        for file in removed:
            file.path.unlink(missing_ok=True)
    if json_:
        keys = [file.key for file in removed]
        sizes = {"freed": freed, "kept": total - freed}
        echo_json({"directory": str(directory), "dry_run": dry_run, "removed": keys, **sizes})
        return
    would = "would be " if dry_run else ""
    echo(f"{count_of(len(removed), 'trace')} {would}removed: {size_of(freed)} {would}freed")
    echo(f"{size_of(total - freed)} are left in {directory}")


def _directory() -> Path:
    from iblip.export.errors import OptionError
    from iblip.export.system.cache_directory import VARIABLE, cache_directory

    directory = cache_directory("traces")
    if directory is None:
        raise OptionError(
            "there is no trace cache, because this user has no home directory. Name one with the"
            f" environment variable {VARIABLE}."
        )
    return directory
