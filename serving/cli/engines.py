"""`iblip engines`: the TensorRT plans in the cache that builds share, and those of a build."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.commands import Commands
from iblip.serving.cli.formatting import (
    age_of,
    count_of,
    echo,
    echo_json,
    fact_lines,
    size_of,
    table_lines,
)
from iblip.serving.cli.kinds import ANY_DIRECTORY, DIRECTORY, Word
from iblip.serving.cli.options import (
    as_json,
    cache_from_flags,
    engine_cache_option,
    no_engine_cache_option,
    options_of,
    plan_options,
    prune_options,
    size_options,
)

if TYPE_CHECKING:
    from iblip.engines.cache.entry import Entry
    from iblip.engines.cache.store import EngineCache
    from iblip.engines.plans import Outcome


@click.group(cls=Commands, short_help="Manage TensorRT plans.")
def command() -> None:
    """Manage TensorRT plans: those in the engine cache, and those of a build."""


@command.command()
@click.argument("build", type=DIRECTORY)
@click.option(
    "--engine",
    required=True,
    type=Word(lambda: ("tensorrt", "tensorrt-rtx")),
    help="Library that builds the plans: tensorrt or tensorrt-rtx.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    metavar="COMPONENT/GRAPH",
    help="Build only this graph, such as language_model/decoder. Repeatable. Default: all but "
    "batched_decoder, which only ONNX Runtime runs.",
)
@click.option(
    "--output",
    type=ANY_DIRECTORY,
    help="Directory for the plans. Default: <BUILD>-<engine>, beside BUILD.",
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
    """Build TensorRT plans of the graphs in BUILD, including the language model's.

    A plan that cannot be built is listed with the library's reason; the exit status is then 1.
    """
    from iblip.engines.cache.store import EngineCache
    from iblip.engines.plans import PlanBuild, plans_of_build
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.export.artifact.manifest import Manifest
    from iblip.serving.builder.options import SizeOptions
    from iblip.serving.builder.sizes import find_plan_library, profile_options_of_build
    from iblip.serving.cli.progress import command_progress

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
    outcomes = list(plans_of_build(directory, manifest, target, how, command_progress(), graphs))
    if json_:
        report = {"directory": str(target), "plans": [outcome.to_json() for outcome in outcomes]}
        echo_json(report)
    else:
        _print_outcomes(outcomes)
    click.get_current_context().exit(1 if any(outcome.reason for outcome in outcomes) else 0)


def _print_outcomes(outcomes: Sequence[Outcome]) -> None:
    """A table of the plans, and on stderr why others could not be built."""
    rows = (_plan_row(outcome) for outcome in outcomes if outcome.plan)
    for line in table_lines([PLAN_COLUMNS, *rows]):
        echo(line)
    for outcome in outcomes:
        if outcome.reason:
            echo(f"{outcome.title}: {outcome.reason}", err=True)


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
        size_of(details["bytes"]),
        _dtypes(matrices),
        _dtypes(others),
    )


def _dtypes(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {dtype}" for dtype, count in sorted(counts.items())) or "none"


@command.command("list")
@engine_cache_option
@as_json
def list_(engine_cache: Path | None, json_: bool) -> None:
    """List the plans in the engine cache, last used first, and what engines compiled."""
    from iblip.engines.cache.catalogue import scan

    cache = _cache(engine_cache)
    contents = scan(cache)
    timing = cache.timing_caches()
    if json_:
        report = {
            "directory": str(cache.directory),
            "plans": [entry.to_json() for entry in contents.entries],
            "damaged": contents.damaged,
            "timing": [{"name": path.name, "bytes": path.stat().st_size} for path in timing],
            "providers": [folder.to_json() for folder in contents.providers],
        }
        echo_json(report)
        return
    total = sum(entry.size for entry in contents.entries)
    echo(f"{cache.directory}: {count_of(len(contents.entries), 'plan')}, {size_of(total)}")
    for line in table_lines([COLUMNS, *map(_row, contents.entries)] if contents.entries else []):
        echo(line)
    for key, reason in contents.damaged.items():
        echo(f"{key[:12]} is damaged: {reason}. The next build that needs it rebuilds it.")
    for path in timing:
        echo(f"timings of {path.stem}: {size_of(path.stat().st_size)}")
    if contents.providers:
        size = size_of(sum(folder.size for folder in contents.providers))
        graphs = count_of(len(contents.providers), "graph")
        echo(f"compiled by engines at their start: {graphs}, {size}")
    for folder in contents.providers:
        kind, graph = folder.name.split("/")
        echo(f"{graph[:12]} by {kind}: {size_of(folder.size)}, used {age_of(folder.used)} ago")


@command.command()
@click.argument("key_or_build", metavar="KEY|BUILD")
@engine_cache_option
@as_json
def inspect(key_or_build: str, engine_cache: Path | None, json_: bool) -> None:
    """Show everything known about one plan in the cache, or about the plans of a build.

    A key may be shortened to any prefix that no other key has. Where there is a GPU that loads the
    plan, the library's own inspector shows what is in it.
    """
    from iblip.engines.cache.catalogue import find

    build = Path(key_or_build)
    if build.is_dir():
        plans = _plans(build)
    else:
        entry = find(_cache(engine_cache), key_or_build)
        plans = {entry.key: {**entry.to_json(), **_inspect(entry.plan, entry.details)}}
    if json_:
        echo_json({"plans": plans})
        return
    for name, facts in plans.items():
        echo(name)
        for line in fact_lines(facts, "  "):
            echo(line)


@command.command()
@prune_options("plans")
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
    """Remove plans from the engine cache. Builds keep the plans they have.

    The same options apply to what ONNX Runtime's TensorRT providers and TensorRT-RTX compiled when
    they started, beside the engine cache. What a server is using stays.
    """
    from iblip.engines.cache.pruning import policy_from_words
    from iblip.engines.cache.pruning import prune as prune_cache

    policy = policy_from_words(older_than, max_size, everything)
    cache = _cache(engine_cache)
    pruned = prune_cache(cache, policy, dry_run=dry_run)
    if json_:
        report = {"directory": str(cache.directory), "dry_run": dry_run, **asdict(pruned)}
        echo_json(report)
        return
    would = "would be " if dry_run else ""
    what = count_of(len(pruned.removed), "plan")
    if pruned.timing:
        what += f" and {count_of(len(pruned.timing), 'timing cache')}"
    if pruned.providers:
        what += f" and what engines compiled of {count_of(len(pruned.providers), 'graph')}"
    echo(f"{what} {would}removed: {size_of(pruned.freed)} {would}freed")
    if pruned.held:
        echo(f"{size_of(pruned.held)} stay on the disk, because builds share those plans")
    if pruned.busy:
        echo(f"{count_of(len(pruned.busy), 'plan')} in use by another process, and kept")
    echo(f"{size_of(pruned.kept)} are left in {cache.directory}")


COLUMNS = ("key", "graph", "library", "for", "size", "built", "used", "hits")


def _cache(directory: Path | None) -> EngineCache:
    from iblip.engines.cache.store import EngineCache
    from iblip.export.errors import OptionError
    from iblip.export.system.cache_directory import VARIABLE

    path = cache_from_flags(directory)
    if path is None:
        raise OptionError(
            "there is no engine cache, because this user has no home directory. Name one with "
            f"--engine-cache, or with the environment variable {VARIABLE}."
        )
    return EngineCache(path)


def _row(entry: Entry) -> tuple[str, ...]:
    inputs = entry.inputs
    return (
        entry.key[:12],
        f"{entry.graph} {inputs['precision']}",
        f"{inputs['library']} {inputs['version']}",
        entry.target,
        size_of(entry.size),
        age_of(entry.created),
        age_of(entry.used),
        str(entry.hits),
    )


def _plans(build: Path) -> dict[str, dict[str, Any]]:
    """What the manifest of a build says about its plans, by component and graph."""
    from iblip.engines.kinds import KINDS
    from iblip.export.artifact.manifest import Manifest
    from iblip.export.errors import BuildDirectoryError

    manifest = Manifest.read(build)
    plans = {
        f"{component}/{graph}": {
            "kind": record.engine.kind,
            "precision": record.precision,
            "path": str(build / file),
            **record.engine.details,
            **_inspect(build / file, record.engine.details),
        }
        for component, record in manifest.components.items()
        if record.engine.kind in KINDS and KINDS[record.engine.kind].plans
        for graph, file in record.engine.files.items()
    }
    if not plans:
        raise BuildDirectoryError(
            f"{build} has no TensorRT plans. Build with --engine tensorrt or tensorrt-rtx."
        )
    return plans


def _inspect(plan: Path, details: Mapping[str, Any]) -> dict[str, Any]:
    """What the library's own inspector says about a plan; without a GPU, why it says nothing."""
    from iblip.engines.hardware.nvidia import has_nvidia_gpu
    from iblip.engines.tensorrt.inspection import engine_information
    from iblip.engines.tensorrt.libraries import find_library
    from iblip.export.errors import EngineError

    if not has_nvidia_gpu():
        return {"inspector": "no NVIDIA GPU here to load the plan on"}
    try:
        library = find_library(details["library"])
        return {"inspector": engine_information(plan, details.get("flags", ()), library)}
    except EngineError as error:
        return {"inspector": str(error)}
