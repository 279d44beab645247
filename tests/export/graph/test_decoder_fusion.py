"""What a graph becomes on CUDA computes the same: the operators of both run on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.fusion import fused_from_proto
from iblip.export.graph.onnxruntime_values import FOLDER
from iblip.export.graph.trace_cache import TraceCache
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent

Array = npt.NDArray[Any]

HEADS, HEAD_DIM, CAPACITY, WIDTH = 2, 8, 12, 16


def fused_for_cuda(path: Path) -> bytes | None:
    fused = fused_from_proto(onnx.load(path, load_external_data=False))
    return None if fused is None else fused.SerializeToString()


def outputs_of(model: str | bytes, folder: Path, feed: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if isinstance(model, bytes):
        options.add_session_config_entry(FOLDER, str(folder))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def compare(path: Path, feed: Mapping[str, Array], last: Array | None = None) -> dict[str, int]:
    """Compares both graphs; returns how many of each operator the rewritten one has.

    Slots are compared up to each row's `last` position: the operators leave other things behind it.
    """
    fused = fused_for_cuda(path)
    assert fused is not None
    expected, actual = (
        outputs_of(str(path), path.parent, feed),
        outputs_of(fused, path.parent, feed),
    )
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        if last is not None and name.startswith("present"):
            written = (np.arange(CAPACITY) <= last[:, None])[:, None, :, None]
            array, actual[name] = array * written, actual[name] * written
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    kinds = [node.op_type for node in onnx.load_model_from_string(fused).graph.node]
    return {kind: kinds.count(kind) for kind in kinds}


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def test_an_addition_and_the_norm_of_its_sum_become_one_operator(tmp_path: Path) -> None:
    path = write(
        tmp_path / "norm.onnx",
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[b, s, 8] x, float[b, s, 8] y, float[8] w)
        => (float[b, s, 8] normed, float[b, s, 8] z)
        {
            sum = Add (x, y)
            normed = SimplifiedLayerNormalization <axis = -1, epsilon = 0.01> (sum, w)
            z = Mul (sum, y)
        }""",
    )
    random = np.random.default_rng(0)
    feed = {name: random.normal(size=(2, 3, 8)).astype(np.float32) for name in "xy"}
    feed["w"] = random.normal(size=8).astype(np.float32)
    kinds = compare(path, feed)
    assert kinds == {"SkipSimplifiedLayerNormalization": 1, "Mul": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        "sum = Mul (x, y) out = SimplifiedLayerNormalization <axis = -1, epsilon = 0.1> (sum, w)",
        "sum = Add (x, y) out = Relu (sum)",
        "out = SimplifiedLayerNormalization <axis = -1, epsilon = 0.1> (x, w)",
    ],
)
def test_what_is_no_residual_norm_is_left_as_it_is(tmp_path: Path, nodes: str) -> None:
    path = write(
        tmp_path / "other.onnx",
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[b, 8] x, float[b, 8] y, float[8] w) => (float[b, 8] out) {{ {nodes} }}""",
    )
    assert fused_for_cuda(path) is None


def attention(path: Path, *, bias: bool) -> Path:
    """A graph of one GroupQueryAttention over slots, in float32."""
    cache = ["b", HEADS, CAPACITY, HEAD_DIM]
    inputs = {
        **dict.fromkeys(("query", "key", "value"), (TensorProto.FLOAT, ["b", 1, WIDTH])),
        **dict.fromkeys(("past_key", "past_value"), (TensorProto.FLOAT, cache)),
        "last": (TensorProto.INT32, ["b"]),
        "total": (TensorProto.INT32, [1]),
    }
    if bias:
        inputs["bias"] = TensorProto.FLOAT, ["b", HEADS, 1, "total"]
    outputs = {"mixed": ["b", 1, WIDTH], "present_key": cache, "present_value": cache}
    names = [*inputs]
    node = helper.make_node(
        "GroupQueryAttention",
        names[:7] + ["", "", "", "bias"] * bias,
        [*outputs],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=HEADS,
        scale=0.7,
    )
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)
            for name, axes in outputs.items()
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_attention_with_a_bias_reads_and_writes_the_same_slots(tmp_path: Path) -> None:
    path = attention(tmp_path / "attention.onnx", bias=True)
    random = np.random.default_rng(1)
    last = np.array([0, 5, CAPACITY - 1], np.int32)  # an empty slot, one in use, and a full one
    rows = len(last)

    def normal(*shape: int) -> Array:
        return random.normal(size=shape).astype(np.float32)

    bias = normal(rows, HEADS, 1, CAPACITY)
    unseen = np.arange(CAPACITY) > last[:, None]
    bias[np.broadcast_to(unseen[:, None, None], bias.shape)] = np.finfo(np.float32).min
    feed = {
        **{name: normal(rows, 1, WIDTH) for name in ("query", "key", "value")},
        **{name: normal(rows, HEADS, CAPACITY, HEAD_DIM) for name in ("past_key", "past_value")},
        "last": last,
        "total": np.array([CAPACITY], np.int32),
        "bias": bias,
    }
    kinds = compare(path, feed, last)
    assert (kinds["TensorScatter"], kinds["Attention"]) == (2, 1)
    assert "GroupQueryAttention" not in kinds


def test_attention_without_a_bias_is_left_as_it_is(tmp_path: Path) -> None:
    assert fused_for_cuda(attention(tmp_path / "attention.onnx", bias=False)) is None


def test_t5s_decoder_gives_the_same_logits_and_slots(
    tiny: Callable[[str], Path], traces: TraceCache, tmp_path: Path
) -> None:
    checkpoint = checkpoint_from_directory(tiny("flant5"))
    components = components_from_checkpoint(checkpoint, PrecisionPolicy())
    (component,) = (one for one in components if one.graph == "batched_decoder")
    graph = onnx_from_component(component, checkpoint, tmp_path, Silent(), traces=traces)
    random = np.random.default_rng(2)
    sizes = {"batch": 3, "sequence": 1, "wanted": 3, "total": CAPACITY}
    sizes |= {"capacity": CAPACITY, "source_capacity": CAPACITY}
    feed: dict[str, Array] = {}
    for spec in graph.contract.inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        feed[spec.name] = random.normal(size=shape).astype(spec.numpy_dtype)
    whole = np.full(1, CAPACITY, np.int32)
    feed |= {
        "input_ids": np.array([[3], [9], [4]]),
        "position_ids": np.array([[0], [7], [CAPACITY - 1]]),
        "logits_at": np.array([2, 0, 1]),
        "key_positions": np.arange(CAPACITY),
        "source_lengths": np.array([4, CAPACITY, 1]),
        "total_sequence_length": whole,
        "total_source_length": whole,
    }
    kinds = compare(graph.path, feed, feed["position_ids"][:, 0])
    layers = checkpoint.config.text_config.num_decoder_layers
    assert kinds["Attention"] == kinds["GroupQueryAttention"] == layers
    assert kinds["SkipSimplifiedLayerNormalization"] == 3 * layers - 1
    # The first block's first norm, of embeddings, and the last, of the positions that are wanted.
    assert kinds["SimplifiedLayerNormalization"] == 2
