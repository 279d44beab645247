"""One build with TensorRT's own objects: read a graph, configure, build.

A thin layer over the library, in the order in which it creates objects; `engines.tensorrt.builder`
decides what to build.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from iblip.engines.tensorrt.libraries import DTYPES, Library
from iblip.engines.tensorrt.log import library_log
from iblip.engines.tensorrt.options import FLAGS, PlanOptions
from iblip.engines.tensorrt.profile import Profile
from iblip.engines.tensorrt.readback import Layer, layers_of_network, precision_fault
from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError


@dataclass
class Job:
    """The objects of one build.

    Attributes:
        library: the library that builds.
        graph: the graph to build.
        messages: the library's error messages so far.
    """

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

    def parse(self) -> list[Layer]:
        """Reads the graph, checks its tensors and dtypes, and returns its layers.

        Raises:
            EngineError: the graph is missing, cannot be read (naming nodes and the parser's
                reason), or its tensors or layers have other dtypes than they should.
        """
        path = self.graph.path
        if not path.is_file():
            raise EngineError(f"there is no graph {path}. The build is incomplete: build it again.")
        if not self.parser.parse_from_file(str(path)):
            errors = [self.parser.get_error(i) for i in range(self.parser.num_errors)]
            reasons = "; ".join(map(_format_parser_error, errors))
            raise EngineError(f"{self.library.kind} cannot read {path}: {reasons}")
        self._check_tensors()
        layers = layers_of_network(self.network)
        fault = precision_fault(layers, self.graph)
        if fault:
            raise EngineError(fault)
        return layers

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
        # Otherwise the inspector only reports names.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for flag in map(FLAGS.__getitem__, options.flags):
            member = getattr(getattr(trt, flag.kind), flag.member)
            if flag.kind == "BuilderFlag":
                config.set_flag(member)
            else:
                config.hardware_compatibility_level = member
        if options.workspace is not None:
            size = options.workspace * 2**20
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)

    def build(self, file: BinaryIO) -> None:
        """Builds the plan into a file, piece by piece if the library can.

        Raises:
            EngineError: the plan cannot be built; the message has the library's reasons.
            OSError: the file cannot be written.
        """
        build = getattr(self.builder, "build_serialized_network_to_stream", None)
        if build is None:
            plan = self.builder.build_serialized_network(self.network, self.config)
            done = plan is not None
            if done:
                file.write(plan)
        else:
            writer = _make_writer(self.library.module, file)
            done = build(self.network, self.config, writer)
            if writer.fault is not None:
                raise writer.fault
        if not done:
            raise EngineError(
                f"{self.library.kind} cannot build {self.graph.path}: "
                f"{'; '.join(self.messages) or 'it gave no reason'}"
            )

    def _check_tensors(self) -> None:
        network, contract = self.network, self.graph.contract
        actual = {
            t.name: t.dtype.name
            for t in (
                *(network.get_input(i) for i in range(network.num_inputs)),
                *(network.get_output(i) for i in range(network.num_outputs)),
            )
        }
        specs: tuple[TensorSpec, ...] = (*contract.inputs, *contract.outputs)
        expected = {spec.name: DTYPES[spec.dtype] for spec in specs}
        if actual != expected:
            raise EngineError(
                f"{self.library.kind} reads {self.graph.path} with the tensors {actual}; "
                f"its contract is {expected}. Build the graph again."
            )


def _make_writer(trt: Any, file: BinaryIO) -> Any:
    """The library's stream writer for a plan, writing to `file`; it keeps an error in `fault`."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.fault: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # must not propagate through the library's own code
                self.fault = error
                return 0

    return Writer()


def _format_parser_error(error: Any) -> str:
    where = f"node {error.node_name() or error.node()} ({error.node_operator() or 'no operator'})"
    return f"{where}: {error.desc()}"
