"""Graphs on ONNX Runtime, and copies of them that can be looked into block by block.

Every graph that is verified is opened here. A copy is made in memory: its weights are read from
where the graph's own lie, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from iblip.export.components.block_marks import OUTPUT
from iblip.export.graph.bfloat16 import with_casts
from iblip.export.graph.onnxruntime_values import FOLDER, run, session_from_onnx

CPU = ("CPUExecutionProvider",)

GIVEN = ".given"
"""What follows a block's path in the name of what is given in its result's place."""

ELEMENTS: Mapping[str, int] = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(bfloat16)": onnx.TensorProto.BFLOAT16,
}
"""ONNX Runtime's word for a type that a block may return, to ONNX's own number."""

Array = npt.NDArray[Any]

Types = Mapping[str, tuple[str, Sequence[Any]]]
"""By a block's result: ONNX Runtime's word for its type, and its shape."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """A graph that also returns the result of every block.

    Attributes:
        session: runs it.
        blocks: names of the results, in order.
        outputs: names of the graph's own outputs.
    """

    session: Any
    blocks: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Every block's result and every output, by name."""
        return run(self.session, [*self.blocks, *self.outputs], feed)

    @property
    def types(self) -> Types:
        """Of every block's result."""
        values = {value.name: value for value in self.session.get_outputs()}
        return {name: (values[name].type, values[name].shape) for name in self.blocks}

    def given(self, streams: Mapping[str, Array]) -> dict[str, Array]:
        """What stands for blocks' results in a graph `with_blocks_apart`, cast as it wants them."""
        types = {value.name: value.type for value in self.session.get_inputs()}
        wanted = {name: types[given_name(name)] for name in streams if given_name(name) in types}
        return {
            given_name(name): streams[name].astype(
                onnx.helper.tensor_dtype_to_np_dtype(ELEMENTS[kind])
            )
            for name, kind in wanted.items()
        }


def open_graph(path: Path) -> Any:
    """An `onnxruntime.InferenceSession` of the graph at `path`, on the CPU."""
    return session_from_onnx(path, _options(), CPU)


def with_taps(path: Path) -> Taps:
    """The graph at `path`, returning every block's result too."""
    return _taps(_proto(path), path)


def with_blocks_apart(path: Path, types: Types) -> Taps:
    """The same where no block reads what another made.

    What follows a block reads an input of the block's path and `.given` instead: each block gets
    the reference's own stream, and its error is its own.

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
    """The input that stands for the block's result `output`."""
    return output.removesuffix(OUTPUT) + GIVEN


def _taps(proto: onnx.ModelProto, path: Path) -> Taps:
    outputs = tuple(value.name for value in proto.graph.output)
    made = (name for node in proto.graph.node for name in node.output)
    blocks = tuple(n for n in made if n.endswith(OUTPUT) and n not in outputs)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in blocks)
    return Taps(session=_session(proto, path), blocks=blocks, outputs=outputs)


def _proto(path: Path) -> onnx.ModelProto:
    """Of a graph in bfloat16, the one that a CPU runs."""
    casts = with_casts(path)
    if casts is None:
        return onnx.load(path, load_external_data=False)
    proto = onnx.ModelProto()
    proto.ParseFromString(casts)
    return proto


def _session(proto: onnx.ModelProto, path: Path) -> Any:
    import onnxruntime

    options = _options()
    options.add_session_config_entry(FOLDER, str(path.parent.absolute()))
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=list(CPU))


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    return options
