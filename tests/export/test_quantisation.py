"""Four-bit weights: what rounding costs, and that ONNX Runtime reads them as they are meant."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.numpy

from export.quantisation import (
    BLOCK,
    Int4Scales,
    Int4Weights,
    packed_from_blocks,
    quantise,
    scales_from_blocks,
)
from export.weights import Recipe, tensors_from_safetensors


def unpacked(packed, scales):
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], BLOCK)
    return (numbers.astype(np.float32) - 8) * scales[..., None]


def blocks_of(matrix):
    spare = -matrix.shape[1] % BLOCK
    return np.pad(matrix, ((0, 0), (0, spare))).reshape(len(matrix), -1, BLOCK)


@pytest.fixture
def source(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((1500, 80)).astype(np.float32)
    matrix[3] = 0
    safetensors.numpy.save_file({"weight": matrix}, tmp_path / "model.safetensors")
    return matrix, tensors_from_safetensors(tmp_path / "model.safetensors")["weight"]


def test_rounding_moves_no_weight_by_more_than_a_scale():
    blocks = np.random.default_rng(1).standard_normal((50, 3, BLOCK)).astype(np.float32)
    blocks[4, 1] = 0
    scales = scales_from_blocks(blocks)
    found = unpacked(packed_from_blocks(blocks, scales), scales)
    assert (np.abs(found - blocks) <= np.abs(scales)[..., None] * 1.0001).all()
    assert np.mean(np.abs(found - blocks) <= np.abs(scales)[..., None] * 0.5001) > 0.95
    largest = np.abs(blocks).argmax(axis=2)[..., None]
    kept = np.take_along_axis(found, largest, 2), np.take_along_axis(blocks, largest, 2)
    np.testing.assert_allclose(*kept, rtol=1e-6)


def test_recipes_are_evaluated_in_parts_and_give_what_they_say(source):
    matrix, tensor = source
    scales = Int4Scales(source=tensor, dtype="float32")
    weights = Int4Weights(source=tensor, dtype="uint8")
    for recipe in (scales, weights):
        values = recipe.evaluate()
        assert (values.shape, values.nbytes) == (recipe.shape, recipe.nbytes)
        assert not recipe.in_place
    np.testing.assert_array_equal(scales.evaluate(), scales_from_blocks(blocks_of(matrix)))
    assert weights.nbytes + scales.nbytes < matrix.nbytes / 5


def test_the_product_is_that_of_the_rounded_weights(source):
    _, tensor = source
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        graph (float[batch, 80] x, float[1500] bias, float[1500, 80] weight) =>
            (float[batch, 1500] y, float[batch, 1500] z, float[batch, 1500] biased) {
            turned = Transpose<perm = [1, 0]>(weight)
            y = MatMul(x, turned)
            z = MatMul(x, turned)
            biased = Gemm<transB = 1>(x, weight, bias)
        }"""
    )
    value = model.graph.inputs.pop()
    model.graph.initializers["weight"] = value
    recipes = quantise(model, {"weight": Recipe(source=tensor, dtype="float32")})
    assert set(recipes) == {"weight.int4", "weight.int4_scales"} == set(model.graph.initializers)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] * 3
    for name, recipe in recipes.items():
        model.graph.initializers[name].const_value = ir.tensor(recipe.evaluate(), name=name)
    for node in model.graph:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    x = np.random.default_rng(2).standard_normal((4, 80)).astype(np.float32)
    rounded = unpacked(recipes["weight.int4"].evaluate(), recipes["weight.int4_scales"].evaluate())
    wanted = x @ rounded.reshape(1500, -1)[:, :80].T
    bias = np.random.default_rng(3).standard_normal(1500).astype(np.float32)
    *plain, biased = session.run(None, {"x": x, "bias": bias})
    for found in (*plain, biased - bias):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("given", ["alpha = 2.0, transB = 1", "transA = 1, transB = 1", ""])
def test_a_product_of_another_kind_is_left_alone(source, given):
    attributes = f"<{given}>" if given else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[80, 80] x, float[1500, 80] weight) => (float[80, 1500] y) {{
            y = Gemm{attributes}(x, weight)
        }}"""
    )
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    recipes = {"weight": Recipe(source=source[1], dtype="float32")}
    assert quantise(model, recipes) == recipes
    assert [node.op_type for node in model.graph] == ["Gemm"]
