"""`iblip build --dry-run`: what a build would write, take and want, before it is made."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.engines.memory import MemoryPlan, bytes_a_position
from iblip.export.artifact.manifest import MEANS_NOTHING
from iblip.export.errors import BuildDirectoryError
from iblip.export.messages import size_text
from iblip.export.progress import Progress, Silent
from iblip.serving.builder.options import BuildOptions
from iblip.serving.builder.settled import SettledBuild
from iblip.serving.builder.settling import settle
from iblip.serving.server.memory import DECODER, ServingMemory, is_estimated

if TYPE_CHECKING:
    from iblip.export.checkpoint.checkpoint import Checkpoint
    from iblip.export.estimate import ComponentEstimate

READ_RATE, WRITE_RATE, TRACING_S = 750e6, 150e6, 40.0
"""Bytes a second that are read (and their digests taken) and made and written, and seconds of
tracing: such that the two builds of 7 B parameters of `python -m benchmarks.build_table`, fp16 and
int4, on two cores and a disk that writes 300 MB/s, come out."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A build that is not made.

    Attributes:
        directory: where it would go.
        name: of the checkpoint.
        synthetic: its weights are random.
        components: what each would be.
        downloaded: bytes of the checkpoint's files that would be downloaded first.
        copied: bytes of the checkpoint's files that would be copied, where they cannot be linked.
        free: bytes, on the disk of `directory`.
        memory: of a server; `None` where it is not known, as on a GPU.
        gpu: of a GPU that runs components; `None` where none does.
        verify: whether it would be compared with transformers, which takes longer.
    """

    directory: Path
    name: str
    synthetic: bool
    components: tuple[ComponentEstimate, ...]
    downloaded: int
    copied: int
    free: int
    memory: ServingMemory | None
    gpu: MemoryPlan | None
    verify: bool

    @property
    def written(self) -> int:
        """Bytes that the disk would lose."""
        return self.copied + sum(component.written for component in self.components)

    @property
    def linked(self) -> int:
        """Bytes that graphs would use of the checkpoint's own files."""
        return sum(component.linked for component in self.components)

    @property
    def source(self) -> Mapping[str, int]:
        """Bytes of the checkpoint that are read, by dtype."""
        return sum((Counter(component.source) for component in self.components), Counter())

    @property
    def seconds(self) -> float:
        """An estimate, without verification and without other engines' own builds."""
        read = sum(self.source.values())
        return TRACING_S + read / READ_RATE + self.written / WRITE_RATE

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; bytes and seconds."""
        return {
            "directory": str(self.directory),
            "name": self.name,
            "synthetic": self.synthetic,
            "components": [asdict(component) for component in self.components],
            "source": dict(self.source),
            "downloaded": self.downloaded,
            "disk": {
                "written": self.written,
                "linked": self.linked,
                "free": self.free,
                "fits": self.written < self.free,
            },
            "memory": None if self.memory is None else self.memory.to_json(),
            "gpu_memory": None if self.gpu is None else self.gpu.to_json(),
            "seconds": round(self.seconds),
            "rates": {"read": READ_RATE, "written": WRITE_RATE, "tracing_s": TRACING_S},
            "verify": self.verify,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.name} would be built in {self.directory}; nothing is written now"
        if self.synthetic:
            yield MEANS_NOTHING
        for component in self.components:
            kind = component.quantisation or component.precision
            yield f"{component.component}: {kind}; graphs {', '.join(component.graphs)}"
            dtypes = ", ".join(
                f"{size_text(size)} {dtype}" for dtype, size in component.source.items()
            )
            made = f"{size_text(component.linked)} linked, {size_text(component.written)} written"
            yield f"  from {dtypes}: {made}"
        if self.downloaded:
            yield f"download: {size_text(self.downloaded)}, once"
        short = "" if self.written < self.free else ": TOO LITTLE"
        copied = f" ({size_text(self.copied)} of them copies, as files cannot be linked there)"
        yield (
            f"disk: {size_text(self.written)} new{copied if self.copied else ''},"
            f" {size_text(self.linked)} linked; {size_text(self.free)} free{short}"
        )
        if self.gpu is not None:
            yield str(self.gpu)
        elif self.memory is None:
            yield "memory: not known on these engines in this precision"
        else:
            yield self.memory.advice or f"memory: it takes {self.memory}"
        more = ", and comparing with transformers" if self.verify else ""
        yield (
            f"time: about {self.seconds / 60:.0f} min{more} (at {READ_RATE / 1e6:.0f} MB/s read and"
            f" {WRITE_RATE / 1e6:.0f} MB/s written, and {TRACING_S:.0f} s of tracing)"
        )


def plan(options: BuildOptions, progress: Progress | None = None) -> Plan:
    """What `builder.build.build` would make of the same options. Writes nothing, in seconds.

    Raises:
        OptionError, CheckpointError: as `build` does before it begins.
    """
    settled = settle(options, progress or Silent())
    from iblip.export.estimate import estimate_components  # loads torch

    checkpoint = settled.checkpoint
    place = next(parent for parent in settled.destination.parents if parent.exists())
    components = estimate_components(checkpoint, settled.policy, settled.quantisations)
    return Plan(
        directory=settled.destination,
        name=checkpoint.name,
        synthetic=checkpoint.synthetic,
        components=components,
        downloaded=sum(
            size for path, size in _sizes_of_files(checkpoint).items() if not path.exists()
        ),
        copied=_count_copied(checkpoint, components, place),
        free=shutil.disk_usage(place).free,
        memory=_estimate_memory(settled, components),
        gpu=settled.memory,
        verify=settled.verification is not None,
    )


ENOUGH = 3
"""Times the bytes of a checkpoint: a disk with more room holds a build of any precision."""


def check_room(settled: SettledBuild) -> None:
    """Refuses a build that the disk cannot hold, before graphs are traced, which takes long.

    Raises:
        BuildDirectoryError: there is too little room.
    """
    checkpoint, destination = settled.checkpoint, settled.destination
    place = next(parent for parent in destination.parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free > ENOUGH * sum(_sizes_of_files(checkpoint).values()):
        return
    from iblip.export.estimate import estimate_components

    components = estimate_components(checkpoint, settled.policy, settled.quantisations)
    written = sum(component.written for component in components)
    written += _count_copied(checkpoint, components, place)
    if written >= free:
        raise BuildDirectoryError(
            f"the build takes {size_text(written)}, and {size_text(free)} are free at {place}."
            " Nothing was written. Free some space, or give --output a directory on another disk."
        )


def _count_copied(
    checkpoint: Checkpoint, components: tuple[ComponentEstimate, ...], destination: Path
) -> int:
    """Bytes of files that lie on another disk than the build, and of which weights are used."""
    if not any(component.linked for component in components):
        return 0
    here = _find_disk(destination)
    sizes = _sizes_of_files(checkpoint)
    return sum(size for path, size in sizes.items() if _find_disk(path) != here)


def _sizes_of_files(checkpoint: Checkpoint) -> dict[Path, int]:
    """Bytes of each file with weights, which may not have been downloaded yet."""
    ends: dict[Path, int] = {}
    for tensor in checkpoint.tensors.values():
        for source in tensor.sources:
            end = source.offset + source.length
            ends[source.file] = max(ends.get(source.file, 0), end)
    return {path: path.stat().st_size if path.exists() else end for path, end in ends.items()}


def _find_disk(path: Path) -> int:
    return next(place for place in (path, *path.parents) if place.exists()).stat().st_dev


def _estimate_memory(
    settled: SettledBuild, components: Sequence[ComponentEstimate]
) -> ServingMemory | None:
    """What a server takes; `None` where it is not known."""
    from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint

    precisions = {component.component: component.precision for component in components}
    if not is_estimated(settled.engines, precisions):
        return None
    graphs = components_from_checkpoint(settled.checkpoint, settled.policy)
    decoder = next(graph for graph in graphs if graph.graph == DECODER)
    return ServingMemory(
        weights=sum(component.loaded for component in components),
        position=bytes_a_position(decoder.contract),
        slots=settled.limits.slots,
        positions=settled.limits.max_length,
    )
