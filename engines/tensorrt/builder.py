"""A plan from a verified graph, by TensorRT or TensorRT-RTX.

The precision of a plan is the graph's own: networks are strongly typed, and no flag lowers it. So
what the parser made of the graph is read back, and a plan that would not be in the dtypes that
were asked for is refused rather than written. Knows nothing of what the graph computes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.tensorrt.libraries import Library
from engines.tensorrt.log import library_log
from engines.tensorrt.options import FLAGS, PlanOptions
from engines.tensorrt.profile import Profile
from engines.tensorrt.timing import timings
from export.contract import TensorSpec
from export.errors import EngineError
from export.graphs import OnnxGraph, VerifiedGraph

DTYPES = {
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "HALF",
    "bfloat16": "BF16",
    "float32": "FLOAT",
}
"""A contract's dtypes as TensorRT spells them."""

PRECISIONS = {
    "fp32": "FLOAT",
    "fp16": "HALF",
    "bf16": "BF16",
    "lavis": "HALF",
    "int8": "FLOAT",
    "int8-fp16": "HALF",
    "fp8": "HALF",
}
"""A graph's precision, and the dtype that its matrices must then have. Of eight bits it is that of
what `DequantizeLinear` gives them."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A built engine file.

    Attributes:
        path: of the `.plan` file.
        details: for `EngineRecord.details`: `library`, `version`, `targets`, `flags` (keys of
            `FLAGS`), `workspace` (in MiB, where it was given), `profiles` (of each,
            `{axis: [least, usual, most]}`), `layers` (matrix layers by dtype), `seconds`, `bytes`,
            `peak_memory_bytes` (of the whole process so far), `graph` (the digest of what it was
            built from) and, where the graph was not verified, `unverified` (the reason).
    """

    path: Path
    details: Mapping[str, Any]


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
        output: of the plan; its directory exists.
        library: as `find_library` returns it.
        profiles: one or several; each has a span for every dynamic axis of the graph's inputs.
        options: targets, flags and workspace; `None` is for this machine's GPU, with no flags.
        timing: of the timings of this library's version and this GPU, which the build uses and adds
            to; `None` times everything anew.

    Raises:
        OptionError: the library does not offer a target or a flag, there is no target and no GPU
            either, or a profile lacks an axis.
        EngineError: the graph cannot be parsed (with the names of the nodes) or built, its dtypes
            are not those of the contract, or the file cannot be written.
    """
    options = options or PlanOptions()
    library.check(options)
    graph = verified.graph
    started = time.monotonic()
    job = _Job(library=library, graph=graph)
    layers = job.parse()
    job.configure(profiles, options)
    with timings(job.config, timing):
        plan = job.build()
    _write(output, plan)
    details = {
        "library": library.kind,
        "version": library.version,
        **options.to_json(),
        "profiles": [profile.to_json() for profile in profiles],
        "layers": layers,
        "seconds": round(time.monotonic() - started, 3),
        "bytes": output.stat().st_size,
        "peak_memory_bytes": _peak_memory(),
        "graph": graph.digest,
    }
    if verified.skipped is not None:
        details["unverified"] = verified.skipped
    return Plan(path=output, details=details)


@dataclass
class _Job:
    """The objects of one build, in the library's own order of making them."""

    library: Library
    graph: OnnxGraph
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        trt = self.library.module
        self.log = library_log(trt, self.messages)
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(self.library.network_flags)
        self.parser = trt.OnnxParser(self.network, self.log)
        self.config = self.builder.create_builder_config()

    def parse(self) -> dict[str, int]:
        """Reads the graph, and returns its matrix layers counted by dtype."""
        path = self.graph.path
        if not path.is_file():
            raise EngineError(f"there is no graph {path}. The build is incomplete: build it again.")
        if not self.parser.parse_from_file(str(path)):
            errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            raise EngineError(
                f"{self.library.kind} cannot read {path}: {'; '.join(map(_parser_error, errors))}"
            )
        self._check_tensors()
        return self._check_precision()

    def configure(self, profiles: Sequence[Profile], options: PlanOptions) -> None:
        """Adds the optimisation profiles, the targets, the flags and the workspace."""
        trt, config = self.library.module, self.config
        for profile in profiles:
            shapes = self.builder.create_optimization_profile()
            for spec in self.graph.contract.inputs:
                shapes.set_shape(spec.name, *profile.shapes(spec))
            config.add_optimization_profile(shapes)
        if options.targets:
            config.num_compute_capabilities = len(options.targets)
        for index, target in enumerate(options.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
        config.clear_flag(trt.BuilderFlag.TF32)
        for flag in map(FLAGS.__getitem__, options.flags):
            member = getattr(getattr(trt, flag.kind), flag.member)
            if flag.kind == "BuilderFlag":
                config.set_flag(member)
            else:
                config.hardware_compatibility_level = member
        if options.workspace is not None:
            size = options.workspace * 2**20
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)

    def build(self) -> Any:
        """The serialised plan, as the library's own buffer."""
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            raise EngineError(
                f"{self.library.kind} cannot build {self.graph.path}: "
                f"{'; '.join(self.messages) or 'it gave no reason'}"
            )
        return plan

    def _check_tensors(self) -> None:
        network, contract = self.network, self.graph.contract
        found = {
            t.name: t.dtype.name
            for t in (
                *(network.get_input(i) for i in range(network.num_inputs)),
                *(network.get_output(i) for i in range(network.num_outputs)),
            )
        }
        specs: tuple[TensorSpec, ...] = (*contract.inputs, *contract.outputs)
        wanted = {spec.name: DTYPES[spec.dtype] for spec in specs}
        if found != wanted:
            raise EngineError(
                f"{self.library.kind} reads {self.graph.path} with the tensors {found}; "
                f"its contract is {wanted}. Build the graph again."
            )

    def _check_precision(self) -> dict[str, int]:
        types = self.library.module.LayerType
        matrices = (types.CONVOLUTION, types.MATRIX_MULTIPLY)
        layers = (self.network.get_layer(i) for i in range(self.network.num_layers))
        counts = Counter(
            layer.get_output(0).dtype.name for layer in layers if layer.type in matrices
        )
        wanted = PRECISIONS[self.graph.precision]
        if counts and not counts[wanted]:
            raise EngineError(
                f"{self.graph.path} was asked for in {self.graph.precision}, but its matrix layers "
                f"are {dict(counts)}. A plan keeps the graph's dtypes: export it in that precision."
            )
        return dict(counts)


def _parser_error(error: Any) -> str:
    where = f"node {error.node_name() or error.node()} ({error.node_operator() or 'no operator'})"
    return f"{where}: {error.desc()}"


def _write(output: Path, plan: Any) -> None:
    try:
        handle, name = tempfile.mkstemp(prefix=output.name, dir=output.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(plan)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's own mode hides it from a server's user
            Path(name).replace(output)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise EngineError(f"the plan {output} cannot be written: {error}") from error


def _peak_memory() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
