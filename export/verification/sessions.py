"""Opens graphs on ONNX Runtime, as they are or as copies that show the result of every block.

Every graph that is verified is opened here. A copy exists in memory alone, and reads the weights of
the graph's own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from iblip.export.components.block_marks import OUTPUT, STREAM_SCALE
from iblip.export.graph.bfloat16 import with_casts
from iblip.export.graph.onnxruntime_values import (
    EXACT_INTEGERS,
    FOLDER,
    run,
    session_from_onnx,
)

CPU = ("CPUExecutionProvider",)

GIVEN = ".given"
"""Suffix, after a block's path, of the input that takes the place of the block's result."""

ELEMENTS: Mapping[str, int] = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
}
"""ONNX's numbers of the types that a block may return, by ONNX Runtime's names."""

Array = npt.NDArray[Any]

Types = Mapping[str, tuple[str, Sequence[Any]]]
"""ONNX Runtime's name of the type, and the shape, of every block's result."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """A graph that also returns the result of every block.

    Attributes:
        session: of the graph.
        blocks: names of the blocks' results, in order.
        outputs: names of the graph's own outputs.
        scale: what the graph multiplies its blocks' results by.
    """

    session: Any
    blocks: tuple[str, ...]
    outputs: tuple[str, ...]
    scale: float = 1.0

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Returns every block's result, not scaled, and every output, by name."""
        arrays = run(self.session, [*self.blocks, *self.outputs], feed)
        if self.scale != 1.0:
            for name in self.blocks:
                arrays[name] = arrays[name].astype(np.float32) / self.scale
        return arrays

    @property
    def types(self) -> Types:
        """Type and shape of every block's result."""
        values = {value.name: value for value in self.session.get_outputs()}
        return {name: (values[name].type, values[name].shape) for name in self.blocks}

    def block_inputs(self, streams: Mapping[str, Array]) -> dict[str, Array]:
        """Returns the inputs of a graph `with_separate_blocks`, scaled and cast to their types.

        Args:
            streams: the blocks' results in the reference, by name.
        """
        types = {value.name: value.type for value in self.session.get_inputs()}
        kinds = {name: types[given_name(name)] for name in streams if given_name(name) in types}
        return {
            given_name(name): (streams[name] * self.scale).astype(
                onnx.helper.tensor_dtype_to_np_dtype(ELEMENTS[kind])
            )
            for name, kind in kinds.items()
        }


def open_graph(path: Path) -> Any:
    """Returns an `onnxruntime.InferenceSession` of the graph at `path`, on the CPU."""
    return session_from_onnx(path, _options(), CPU)


def with_taps(path: Path) -> Taps:
    """Opens the graph at `path` with the results of all blocks as further outputs."""
    return _taps(_proto(path), path)


def with_separate_blocks(path: Path, types: Types) -> Taps:
    """Opens the same graph with blocks that do not read one another's results.

    Whatever follows a block reads an input instead, which is called after the block's path with
    `.given`. So each block is given the reference's own stream, and its error is its own.

    Args:
        path: of the graph.
        types: of its blocks' results, `Taps.types`.
    """
    proto = _proto(path)
    given = {name: given_name(name) for name in types}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = given.get(name, name)
    for name, (kind, shape) in types.items():
        info = onnx.helper.make_tensor_value_info(given[name], ELEMENTS[kind], shape)
        proto.graph.input.append(info)
    return _taps(proto, path)


def given_name(output: str) -> str:
    """Returns the name of the input that takes the place of the block's result `output`."""
    return output.removesuffix(OUTPUT) + GIVEN


def _taps(proto: onnx.ModelProto, path: Path) -> Taps:
    outputs = tuple(value.name for value in proto.graph.output)
    values = (name for node in proto.graph.node for name in node.output)
    blocks = tuple(name for name in values if name.endswith(OUTPUT) and name not in outputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in blocks)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    scale = float(metadata.get(STREAM_SCALE, 1.0))
    return Taps(session=_session(proto, path), blocks=blocks, outputs=outputs, scale=scale)


def _proto(path: Path) -> onnx.ModelProto:
    """Reads the graph; one in bfloat16 is changed so that a CPU can run it."""
    casts = with_casts(path)
    if casts is None:
        return onnx.load(path, load_external_data=False)
    proto = onnx.ModelProto()
    proto.ParseFromString(casts)
    return proto


def _session(proto: onnx.ModelProto, path: Path) -> Any:
    import onnxruntime

    options = _options()
    options.add_session_config_entry(EXACT_INTEGERS, "1")
    options.add_session_config_entry(FOLDER, str(path.parent.absolute()))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=list(CPU))


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return options
