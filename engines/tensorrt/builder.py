"""A plan from a verified graph, by TensorRT or TensorRT-RTX.

A plan has the precision of its graph: networks are strongly typed, and no flag lowers it. So the
parsed network is read back, and a plan that would not be in the requested dtypes is refused. This
module knows nothing of what the graph computes.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.tensorrt.collection import no_collection
from iblip.engines.tensorrt.inspection import check_engine, engine_information
from iblip.engines.tensorrt.job import Job
from iblip.engines.tensorrt.libraries import Library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.engines.tensorrt.readback import Layer, matrix_layers
from iblip.engines.tensorrt.timing import timings
from iblip.export.artifact.verified_graph import OnnxGraph, VerifiedGraph
from iblip.export.errors import EngineError
from iblip.export.system.files import whole_file


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A built engine file.

    Attributes:
        path: of the `.plan` file.
        details: for `EngineRecord.details`: `library`, `version`, `targets`, `flags` (keys of
            `FLAGS`), `workspace` (in MiB, if it was set), `profiles` (each
            `{axis: [min, opt, max]}`), `layers` (number of matrix layers by dtype), `all_layers`
            (the same of all layers that compute with real numbers), `seconds`, `bytes`,
            `engine_layers` (the same of the built engine, if this machine has its GPU),
            `peak_memory_bytes` (of the whole process so far), `graph` (the digest of the graph)
            and, if the graph was not verified, `unverified` (the reason).
    """

    path: Path
    details: Mapping[str, Any]


@no_collection()
def plan_from_onnx(
    verified: VerifiedGraph,
    output: Path,
    *,
    library: Library,
    profiles: Sequence[Profile],
    options: PlanOptions | None = None,
    timing: Path | None = None,
) -> Plan:
    """Builds the plan of one graph into the file `output`, which appears whole or not at all.

    Args:
        verified: the graph; its weights may lie in files beside it.
        output: the plan's file; its directory exists.
        library: as `find_library` returns it.
        profiles: one or several; each has a span for every dynamic axis of the graph's inputs.
        options: targets, flags and workspace; `None` is for this machine's GPU, with no flags.
        timing: the timing cache of this version of the library and this GPU, which the build uses
            and adds to; `None` measures everything.

    Raises:
        OptionError: the library does not offer a target or a flag, there is neither a target nor a
            GPU, or a profile lacks an axis.
        EngineError: the graph cannot be parsed (the message names the nodes) or built, its dtypes
            are not the contract's, or the file cannot be written.
    """
    options = options or PlanOptions()
    library.check(options)
    graph = verified.graph
    started = time.monotonic()
    job = Job(library=library, graph=graph)
    layers = job.parse()
    job.configure(profiles, options)
    try:
        with timings(job.config, timing), whole_file(output) as file:
            job.build(file)
    except OSError as error:
        raise EngineError(f"the plan {output} cannot be written: {error}") from error
    details = {
        "library": library.kind,
        "version": library.version,
        **options.to_json(),
        "profiles": [profile.to_json() for profile in profiles],
        "layers": matrix_layers(layers),
        "all_layers": dict(Counter(layer.dtype for layer in layers)),
        "seconds": round(time.monotonic() - started, 3),
        "bytes": output.stat().st_size,
        "peak_memory_bytes": _peak_memory(),
        "graph": graph.digest,
    }
    if has_nvidia_gpu() and not options.targets and "strip-plan" not in options.flags:
        information = engine_information(output, options.flags, library)
        details["engine_layers"] = check_engine(information, graph)
    if verified.skipped is not None:
        details["unverified"] = verified.skipped
    return Plan(path=output, details=details)


@no_collection()
def parse_graph(graph: OnnxGraph, library: Library) -> list[Layer]:
    """The layers that the library's parser makes of a graph, whose dtypes are as they should be.

    Raises:
        EngineError: as `plan_from_onnx`, but for building and writing.
    """
    return Job(library=library, graph=graph).parse()


def _peak_memory() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
