"""The graph for the CUDA provider: it computes what the other does, with fewer operators."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from iblip.export.artifact.contract import DTYPES
from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.exporter import onnx_from_component
from iblip.export.graph.fusion import fused_from_proto, fused_path
from iblip.export.graph.onnxruntime_values import run, session_from_onnx
from iblip.export.precision import PrecisionPolicy
from iblip.export.progress import Silent

SIZES = {"batch": 2, "instruction": 7, "sequence": 3, "past": 5, "total": 8, "source": 11}

TOLERANCES = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.5e-2, "lavis": 2e-3}
"""Largest relative error between the two graphs, by precision: rounding is at other places."""


@pytest.fixture(scope="module")
def exported(tiny, traces, tmp_path_factory):
    """Graphs of a tiny checkpoint by name, by kind and precision, made once.

    Language models in fp32 and fp16 alone: tests of other precisions do not look at them.
    """
    made = {}

    def export(kind, precision):
        if (kind, precision) not in made:
            checkpoint = checkpoint_from_directory(tiny(kind))
            directory = tmp_path_factory.mktemp(f"{kind}-{precision}")
            made[kind, precision] = {
                one.title: onnx_from_component(one, checkpoint, directory, Silent(), traces=traces)
                for one in components_from_checkpoint(checkpoint, PrecisionPolicy.parse(precision))
                if precision in ("fp32", "fp16") or one.component != "language_model"
            }
        return made[kind, precision]

    return export


def feed_of(graph):
    generator, feed = np.random.default_rng(0), {}
    for spec in graph.contract.inputs:
        shape = [SIZES.get(axis, axis) for axis in spec.axes]
        if spec.dtype == "uint8":
            values = generator.integers(0, 256, shape)
        elif spec.dtype == "int64":
            values = generator.integers(0, 2, shape) | ("total" in spec.axes)
        else:
            values = generator.standard_normal(shape)
        feed[spec.name] = values.astype(DTYPES[spec.dtype])
    return feed


def open_on_cpu(path):
    return session_from_onnx(path, onnxruntime.SessionOptions(), ["CPUExecutionProvider"])


def outputs(path, graph, feed):
    names = [spec.name for spec in graph.contract.outputs]
    return {
        name: array.astype(np.float64)
        for name, array in run(open_on_cpu(path), names, feed).items()
    }


def operators(path):
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.parametrize("name", ["vision_encoder/model", "qformer/model"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_it_computes_the_same(exported, name, precision):
    graph = exported("vicuna", precision)[name]
    feed = feed_of(graph)
    expected, actual = (
        outputs(graph.path, graph, feed),
        outputs(fused_path(graph.path), graph, feed),
    )
    for key, array in expected.items():
        error = np.linalg.norm(actual[key] - array) / np.linalg.norm(array)
        assert error <= TOLERANCES[precision], (key, error)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vicuna", "language_model/decoder"),
        ("opt", "language_model/decoder"),
        ("flant5", "language_model/encoder"),
        ("blip2-t5", "qformer/model"),
    ],
)
def test_other_graphs_compute_the_same(exported, kind, name):
    graph = exported(kind, "fp32")[name]
    feed = feed_of(graph)
    expected, actual = (
        outputs(graph.path, graph, feed),
        outputs(fused_path(graph.path), graph, feed),
    )
    for key, array in expected.items():
        np.testing.assert_allclose(actual[key], array, rtol=1e-4, atol=1e-5)


def test_a_masked_instruction_is_not_read(exported):
    graph = exported("vicuna", "fp16")["qformer/model"]
    feed = feed_of(graph)
    feed["qformer_attention_mask"][:] = [1, 1, 1, 1, 0, 0, 0]
    masked = outputs(fused_path(graph.path), graph, feed)["visual_prompt"]
    feed["qformer_input_ids"][:, 4:] = 3
    again = outputs(fused_path(graph.path), graph, feed)["visual_prompt"]
    np.testing.assert_array_equal(again, masked)
    feed["qformer_attention_mask"][:] = 1
    assert not np.allclose(outputs(fused_path(graph.path), graph, feed)["visual_prompt"], masked)


def test_an_instruction_may_be_filled_up(exported):
    graph = exported("vicuna", "fp32")["qformer/model"]
    feed = feed_of(graph)
    expected = outputs(fused_path(graph.path), graph, feed)["visual_prompt"]
    feed |= {
        name: np.pad(feed[name], ((0, 0), (0, 1)))
        for name in ("qformer_input_ids", "qformer_attention_mask")
    }
    filled = outputs(fused_path(graph.path), graph, feed)["visual_prompt"]
    np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_layer_of_a_vit_is_ten_operators(exported, precision):
    path = fused_path(exported("vicuna", precision)["vision_encoder/model"].path)
    layers = operators(path)["Attention"]
    nodes = onnx.load(path, load_external_data=False).graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    found = operators(path)
    assert found["FusedMatMul"] == 4 * layers
    assert found["SkipLayerNormalization"] == 2 * layers
    assert found["Split"] == found["Gelu"] == layers
    assert not found["Softmax"]
    assert found["MatMul"] == 1  # of the patches
    assert found["Add"] == 2 * layers + 2  # with Gelu one; the others are of the patches


def test_weights_are_read_as_they_lie(exported):
    for kind, precision in (("vicuna", "fp16"), ("opt", "fp32"), ("flant5", "fp32")):
        for graph in exported(kind, precision).values():
            if not fused_path(graph.path).is_file():
                continue
            proto = onnx.load(fused_path(graph.path), load_external_data=False).graph
            weights = {tensor.name for tensor in proto.initializer if len(tensor.dims) == 2}
            turned = [
                n.name for n in proto.node if n.op_type == "Transpose" and n.input[0] in weights
            ]
            assert turned == [], graph.path


def test_scores_with_a_bias_of_their_own_stay_as_they_are(exported):
    graph = exported("flant5", "fp32")["language_model/encoder"]
    assert operators(fused_path(graph.path))["Softmax"] == operators(graph.path)["Softmax"] > 0


def test_a_graph_without_any_of_it_has_no_second_one(exported):
    graph = exported("vicuna", "fp16")["language_model/embed_tokens"]
    assert not fused_path(graph.path).exists()
    assert fused_from_proto(onnx.load(graph.path, load_external_data=False)) is None


@pytest.mark.parametrize("name", ["vision_encoder/model", "qformer/model"])
def test_onnx_has_every_operator_in_bfloat16(exported, name):
    graph = exported("vicuna", "bf16")[name]
    proto = onnx.load(graph.path, load_external_data=False)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert any(t.data_type == onnx.TensorProto.BFLOAT16 for t in proto.graph.initializer)


def test_a_norm_without_a_shift_is_fused_with_what_it_adds(tmp_path):
    path = tmp_path / "norm.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[b, s, 8] x, float[b, s, 8] y, float[8] b1, float[8] w) => (float[b, s, 8] out)
    {
        moved = Add (x, b1)
        sum = Add (moved, y)
        normed = LayerNormalization <axis = -1, epsilon = 0.01> (sum, w)
        out = Mul (normed, sum)
    }"""
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    onnx.save(proto, path)
    fused = fused_from_proto(proto)
    onnx.save(fused, fused_path(path))
    generator = np.random.default_rng(0)
    shapes = {"x": (2, 3, 8), "y": (2, 3, 8), "b1": (8,), "w": (8,)}
    feed = {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    expected, actual = (
        run(open_on_cpu(one), ["out"], feed)["out"] for one in (path, fused_path(path))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
    assert "SkipLayerNormalization" in {node.op_type for node in fused.graph.node}
