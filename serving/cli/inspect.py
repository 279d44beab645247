"""`iblip inspect`: what is in a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, size_of
from iblip.serving.cli.kinds import DIRECTORY
from iblip.serving.cli.options import as_json

if TYPE_CHECKING:
    from iblip.export.artifact.manifest import GraphRecord


NO_RECORD = "none of this build. `iblip prove {}` makes one on the machine where it is to run."


@click.command(cls=Command, short_help="Show what is in a build.")
@click.argument("directory", type=DIRECTORY)
@click.option(
    "--digests", is_flag=True, help="Also check every file's digest against the manifest."
)
@as_json
def command(directory: Path, digests: bool, json_: bool) -> None:
    """Show what is in the build in DIRECTORY."""
    from iblip.export.artifact.manifest import MEANS_NOTHING, Manifest
    from iblip.serving.parity.report import engines_left_out
    from iblip.serving.proving.record import record_of_build
    from iblip.serving.proving.text import stages_of

    manifest = Manifest.read(directory)
    if digests:
        from iblip.export.graph.digest import check_digests

        check_digests(directory, manifest)
    proven = record_of_build(directory)
    if json_:
        proof = {"proof": proven.to_json() if proven else None}
        echo_json(manifest.to_json() | proof)
        return
    engines = {name: entry.engine.kind for name, entry in manifest.components.items()}
    facts = manifest.language_model
    echo(f"{manifest.name} ({manifest.family}, {facts.architecture}), {manifest.created}")
    source = manifest.source
    commit = f"{source['model']} at {source['revision']}, " if source.get("revision") else ""
    echo(f"from {commit}{source['path']}")
    if manifest.synthetic:
        echo(MEANS_NOTHING)
    for name, record in manifest.components.items():
        echo(f"\n{name}: {record.precision} on {record.engine.kind}")
        if record.quantisation:
            echo(f"  {record.quantisation['summary']}")
        for graph, entry in record.graphs.items():
            echo(f"  {graph}  {_size(directory, entry)}  sha256 {entry.digest[:16]}…")
            for arrow, specs in (("in ", entry.contract.inputs), ("out", entry.contract.outputs)):
                for spec in specs[:4]:
                    echo(f"    {arrow} {spec}")
                if len(specs) > 4:
                    echo(f"    {arrow} … and {len(specs) - 4} more")
    limits = manifest.limits
    echo(
        f"\nlimits: {limits.slots} slots of {limits.max_length} positions"
        f" (the model's own: {facts.max_length}), {limits.queue} requests may wait,"
        f" {limits.images} image{'s' if limits.images > 1 else ''} a request at most"
    )
    echo(f"verification: {_summary(manifest.verification)}")
    if note := engines_left_out(str(directory), engines):
        echo(f"  {note}")
    echo(f"proof: {proven.summary if proven else NO_RECORD.format(directory)}")
    for line in stages_of(proven) if proven else ():
        echo(line)


def _size(directory: Path, entry: GraphRecord) -> str:
    paths = [directory / path for path in {entry.path, *entry.weights}]
    missing = sorted(path.name for path in paths if not path.is_file())
    if missing:
        return f"missing: {', '.join(missing)}"
    stats = [path.stat() for path in paths]
    own = sum(stat.st_size for stat in stats if stat.st_nlink == 1)
    linked = any(stat.st_nlink > 1 for stat in stats)
    beside = " beside the checkpoint's own file"
    return f"{size_of(own)}{beside if linked else ''}"


def _summary(verification: Mapping[str, Any]) -> str:
    if "skipped" in verification:
        return f"skipped ({verification['skipped']})"
    graphs, text = verification["graphs"], verification.get("text", {})
    worst = min(figures["cosine"] for figures in graphs.values())
    line = f"{len(graphs)} graphs compared, smallest cosine {worst:.8f}"
    if "same_text" in text:
        line += f"; same text on {text['same_text']} of {text['examples']} examples"
    return line
