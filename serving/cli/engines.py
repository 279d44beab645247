"""`iblip engines`: the TensorRT plans that builds share, and those of a build."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.options import (
    as_json,
    cache_from_flags,
    engine_cache_option,
    no_engine_cache_option,
    options_of,
    plan_options,
    size_options,
)

if TYPE_CHECKING:
    from iblip.engines.cache.entry import Entry
    from iblip.engines.cache.store import EngineCache
    from iblip.engines.plans import Outcome


@click.group()
def command() -> None:
    """Look after TensorRT plans: those of the engine cache, and those of a build."""


@command.command()
@click.argument("build", type=click.Path(path_type=Path))
@click.option("--engine", required=True, help="What builds the plans: tensorrt or tensorrt-rtx.")
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="COMPONENT/GRAPH",
    help="Only this one, such as language_model/decoder. Repeatable. Default: all but "
    "batched_decoder, which is ONNX Runtime's.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the plans. Default: <BUILD>-<engine>, beside it.",
)
@plan_options
@size_options
@engine_cache_option
@no_engine_cache_option
@as_json
def build(
    build: Path,
    engine: str,
    graphs: tuple[str, ...],
    output: Path | None,
    engine_cache: Path | None,
    no_engine_cache: bool,
    json_: bool,
    **flags: Any,
) -> None:
    """Build TensorRT plans of the graphs of BUILD, the language model's too.

    What cannot be built is listed with the library's reason, and the exit status is then 1.
    """
    from iblip.engines.cache.store import EngineCache
    from iblip.engines.plans import PlanBuild, plans_of_build
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.builder.options import SizeOptions
    from iblip.serving.builder.sizes import find_plan_library, profile_options_of_build
    from iblip.serving.cli.progress import Terminal

    directory, manifest = build, Manifest.read(build)
    cache = cache_from_flags(engine_cache, no_engine_cache)
    options = options_of(PlanOptions, flags)
    how = PlanBuild(
        library=find_plan_library(engine, options.targets),
        options=options,
        sizes=profile_options_of_build(manifest, options_of(SizeOptions, flags)),
        cache=None if cache is None else EngineCache(cache),
    )
    target = output or directory.with_name(f"{directory.absolute().name}-{engine}")
    found = list(plans_of_build(directory, manifest, target, how, Terminal(), graphs))
    if json_:
        report = {"directory": str(target), "plans": [outcome.to_json() for outcome in found]}
        click.echo(json.dumps(report, indent=2))
    else:
        for line in _table([PLAN_COLUMNS, *(_plan_row(one) for one in found if one.plan)]):
            click.echo(line)
        for outcome in found:
            if outcome.reason:
                click.echo(f"{outcome.title}: {outcome.reason}", err=True)
    click.get_current_context().exit(1 if any(outcome.reason for outcome in found) else 0)


PLAN_COLUMNS = ("graph", "precision", "seconds", "size", "matrix layers", "other layers")


def _plan_row(outcome: Outcome) -> tuple[str, ...]:
    assert outcome.plan is not None
    details = outcome.plan.details
    matrices = Counter(details["layers"])
    others = Counter(details["all_layers"]) - matrices
    return (
        outcome.title,
        outcome.graph.precision,
        f"{details['seconds']:.1f}" + (" (cached)" if details.get("cached") else ""),
        _bytes(details["bytes"]),
        _dtypes(matrices),
        _dtypes(others),
    )


def _dtypes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items())) or "none"


@command.command("list")
@engine_cache_option
@as_json
def list_(engine_cache: Path | None, json_: bool) -> None:
    """List the plans of the engine cache, the last used first, and what ONNX Runtime compiled."""
    from iblip.engines.cache.catalogue import scan

    cache = _cache(engine_cache)
    found = scan(cache)
    timing = cache.timing_caches()
    if json_:
        report = {
            "directory": str(cache.directory),
            "plans": [entry.to_json() for entry in found.entries],
            "damaged": found.damaged,
            "timing": [{"name": path.name, "bytes": path.stat().st_size} for path in timing],
            "providers": [folder.to_json() for folder in found.providers],
        }
        click.echo(json.dumps(report, indent=2))
        return
    total = sum(entry.size for entry in found.entries)
    click.echo(f"{cache.directory}: {_count(len(found.entries), 'plan')}, {_bytes(total)}")
    for line in _table([COLUMNS, *map(_row, found.entries)] if found.entries else []):
        click.echo(line)
    for key, reason in found.damaged.items():
        click.echo(f"{key[:12]} is damaged: {reason}. The build that wants it builds it anew.")
    for path in timing:
        click.echo(f"timings of {path.stem}: {_bytes(path.stat().st_size)}")
    if found.providers:
        room = _bytes(sum(folder.size for folder in found.providers))
        click.echo(f"compiled by ONNX Runtime: {_count(len(found.providers), 'graph')}, {room}")
    for folder in found.providers:
        kind, graph = folder.name.split("/")
        click.echo(f"{graph[:12]} by {kind}: {_bytes(folder.size)}, used {_age(folder.used)} ago")


@command.command()
@click.argument("key_or_build", metavar="KEY|BUILD")
@engine_cache_option
@as_json
def inspect(key_or_build: str, engine_cache: Path | None, json_: bool) -> None:
    """Show all that is known of a plan of the cache, or of the plans of a build.

    Of a key, as many digits are enough as no other begins with. Where there is a GPU that loads the
    plan, the library's own inspector says what is in it.
    """
    from iblip.engines.cache.catalogue import find

    build = Path(key_or_build)
    if build.is_dir():
        found = _plans(build)
    else:
        entry = find(_cache(engine_cache), key_or_build)
        found = {entry.key: {**entry.to_json(), **_inspected(entry.plan, entry.details)}}
    if json_:
        click.echo(json.dumps(found, indent=2))
        return
    for name, facts in found.items():
        click.echo(name)
        for line in _lines(facts, "  "):
            click.echo(line)


@command.command()
@click.option("--older-than", metavar="AGE", help="Plans not used for so long: 30d, 12h.")
@click.option(
    "--max-size",
    metavar="SIZE",
    help="Those used longest ago, until the rest is no larger: 20GB, 512MiB.",
)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@engine_cache_option
@as_json
def prune(
    older_than: str | None,
    max_size: str | None,
    everything: bool,
    dry_run: bool,
    engine_cache: Path | None,
    json_: bool,
) -> None:
    """Remove plans from the engine cache. Builds keep those that they have.

    What ONNX Runtime's TensorRT providers compiled, beside the engine cache, goes by the same
    options; what a server is using stays.
    """
    from iblip.engines.cache.pruning import Policy, bytes_from_words, seconds_from_words
    from iblip.engines.cache.pruning import prune as prune_cache

    policy = Policy(
        older_than=None if older_than is None else seconds_from_words(older_than),
        max_size=None if max_size is None else bytes_from_words(max_size),
        everything=everything,
    )
    cache = _cache(engine_cache)
    found = prune_cache(cache, policy, dry_run=dry_run)
    if json_:
        report = {"directory": str(cache.directory), "dry_run": dry_run, **asdict(found)}
        click.echo(json.dumps(report, indent=2))
        return
    would = "would be " if dry_run else ""
    what = _count(len(found.removed), "plan")
    if found.timing:
        what += f" and {_count(len(found.timing), 'timing cache')}"
    if found.providers:
        what += f" and what ONNX Runtime compiled of {_count(len(found.providers), 'graph')}"
    click.echo(f"{what} {would}removed: {_bytes(found.freed)} {would}freed")
    if found.held:
        click.echo(f"{_bytes(found.held)} stay on the disk, as builds have those plans as well")
    if found.busy:
        click.echo(f"{_count(len(found.busy), 'plan')} in use by another process, and kept")
    click.echo(f"{_bytes(found.kept)} are left in {cache.directory}")


COLUMNS = ("key", "graph", "library", "for", "size", "built", "used", "hits")


def _cache(directory: Path | None) -> EngineCache:
    from iblip.engines.cache.store import EngineCache
    from iblip.export.errors import OptionError
    from iblip.export.system.cache_directory import VARIABLE

    found = cache_from_flags(directory)
    if found is None:
        raise OptionError(
            "this user has no home, and so no engine cache. Give one with --engine-cache, or with "
            f"the variable {VARIABLE}."
        )
    return EngineCache(found)


def _row(entry: Entry) -> tuple[str, ...]:
    recipe = entry.recipe
    return (
        entry.key[:12],
        f"{entry.graph} {recipe['precision']}",
        f"{recipe['library']} {recipe['version']}",
        entry.target,
        _bytes(entry.size),
        _age(entry.created),
        _age(entry.used),
        str(entry.hits),
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows in columns, each as wide as its widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def _plans(build: Path) -> dict[str, dict[str, Any]]:
    """What the manifest of a build says of its plans, by component and graph."""
    from iblip.engines.selection import KINDS
    from iblip.export.artifact.manifest import Manifest
    from iblip.export.errors import BuildDirectoryError

    manifest = Manifest.read(build)
    found = {
        f"{component}/{graph}": {
            "kind": record.engine.kind,
            "precision": record.precision,
            "path": str(build / file),
            **record.engine.details,
            **_inspected(build / file, record.engine.details),
        }
        for component, record in manifest.components.items()
        if record.engine.kind in KINDS and KINDS[record.engine.kind].plans
        for graph, file in record.engine.files.items()
    }
    if not found:
        raise BuildDirectoryError(
            f"{build} has no TensorRT plans. Build with --engine tensorrt or tensorrt-rtx."
        )
    return found


def _inspected(plan: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """What the library's own inspector says of a plan; without a GPU, why it says nothing."""
    from iblip.engines.hardware.nvidia import nvidia_driver
    from iblip.engines.tensorrt.inspection import engine_information
    from iblip.engines.tensorrt.libraries import find_library
    from iblip.export.errors import EngineError

    if not nvidia_driver():
        return {"inspector": "no NVIDIA GPU here to load the plan on"}
    try:
        library = find_library(details["library"])
        return {"inspector": engine_information(plan, details.get("flags", ()), library)}
    except EngineError as error:
        return {"inspector": str(error)}


def _lines(facts: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        elif isinstance(value, int) and name.endswith("bytes"):
            lines.append(f"{indent}{name}: {value:,} ({_bytes(value)})")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            lines.append(f"{indent}{name}: {text}")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _age(moment: str) -> str:
    """How long ago, in one unit."""
    then = datetime.datetime.fromisoformat(moment)
    seconds = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
