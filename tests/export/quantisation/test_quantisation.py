"""Weights as whole numbers: what rounding costs, and that ONNX Runtime reads them as meant."""

import itertools
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import safetensors.numpy
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.capi._pybind_state import quantize_matmul_4bits

from iblip.export.artifact.contract import DTYPES
from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.errors import ExportError, OptionError
from iblip.export.graph.bfloat16 import compute_in_float32
from iblip.export.graph.onnxruntime_values import run as run_session
from iblip.export.graph.onnxruntime_values import session_from_onnx
from iblip.export.precision import PrecisionPolicy
from iblip.export.quantisation import blockwise, channelwise
from iblip.export.quantisation.blockwise import (
    METHODS,
    BlockwiseMatrix,
    Integers,
    Scales,
    ZeroPoints,
)
from iblip.export.quantisation.formats import FORMATS
from iblip.export.quantisation.graph import quantise
from iblip.export.quantisation.measuring import Measurements
from iblip.export.quantisation.options import Quantisation, QuantisationOptions, quantisations
from iblip.export.weights.casts import array_from_tensor
from iblip.export.weights.recipe import Recipe

OUT, IN = 1500, 80
INT4 = Quantisation(bits=4, block_size=32)
DYNAMIC = Quantisation(bits=8, activations="dynamic")


@pytest.fixture
def source(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((OUT, IN)).astype(np.float32)
    matrix[3] = 0
    safetensors.numpy.save_file({"weight": matrix}, tmp_path / "model.safetensors")
    return matrix, tensors_from_safetensors(tmp_path / "model.safetensors")["weight"]


@pytest.fixture
def small_pieces(monkeypatch):
    """Matrices are worked on in several parts, as large ones are."""
    monkeypatch.setattr(blockwise, "PIECE", 100 * IN)


def unpacked(numbers, bits):
    if bits == 8:
        return numbers.astype(np.float32)
    pairs = np.stack([numbers & 15, numbers >> 4], axis=-1)
    return pairs.reshape(*numbers.shape[:-1], -1).astype(np.float32)


def floats_from(how, tensor, dtype="float32"):
    """The matrix that the recipes stand for."""
    kinds = {"uint8": Integers, dtype: Scales}
    numbers, scales = (
        kind(source=tensor, dtype=d, matrix=how).evaluate() for d, kind in kinds.items()
    )
    zeros = np.full(scales.shape, 2 ** (how.bits - 1), np.float32)
    if not how.symmetric:
        packed = ZeroPoints(source=tensor, dtype="uint8", matrix=how).evaluate()
        zeros = unpacked(packed, how.bits)[:, : how.blocks]
    found = (unpacked(numbers, how.bits) - zeros[..., None]) * scales[..., None].astype(np.float32)
    return found.reshape(len(found), -1)[:, : tensor.shape[1]]


def blockwise_matrix(tensor, **given):
    return BlockwiseMatrix(
        source=tensor, **{"bits": 4, "block_size": 32, "symmetric": True, "method": "rtn", **given}
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_moves_no_weight_by_more_than_a_scale(source, bits, symmetric):
    matrix, tensor = source
    how = blockwise_matrix(tensor, bits=bits, symmetric=symmetric)
    scales = Scales(source=tensor, dtype="float32", matrix=how).evaluate()
    error = np.abs(floats_from(how, tensor) - matrix)
    allowed = np.repeat(np.abs(scales), 32, axis=1)[:, :IN]
    assert (error <= allowed * 1.0001).all()
    assert np.mean(error <= allowed * 0.5001) > 0.95


def test_four_bits_are_those_of_onnxruntime(source):
    matrix, tensor = source
    padded = np.pad(matrix, ((0, 0), (0, -IN % 32)))
    packed, scales = np.zeros((OUT, 3, 16), np.uint8), np.zeros((OUT, 3), np.float32)
    unused = np.zeros((OUT, 2), np.uint8)
    turned = np.ascontiguousarray(padded.T)
    quantize_matmul_4bits(packed, turned, scales, unused, 32, OUT, 96, True)
    how = blockwise_matrix(tensor)
    found = Integers(source=tensor, dtype="uint8", matrix=how).evaluate()
    same = np.delete(np.arange(OUT), 3)  # of a row of zeros, each has its own idea
    assert np.mean(found[same] == packed[same]) > 0.9999
    made = Scales(source=tensor, dtype="float32", matrix=how).evaluate()
    np.testing.assert_allclose(made, scales, rtol=1e-6)


def test_k_quant_is_nearer_than_rounding_in_large_blocks():
    weights = torch.randn(256, 128, generator=torch.Generator().manual_seed(0))

    def error(method):
        numbers, scales, zeros = METHODS[method, False](weights, 4, lambda scales: scales)
        found = (numbers.float() - zeros.float()[:, None]) * scales[:, None]
        return float(torch.square(found - weights).mean())

    assert error("k-quant") < 0.98 * error("rtn")


@pytest.mark.usefixtures("small_pieces")
def test_a_matrix_is_read_once_for_all_that_is_made_of_it(source, monkeypatch):
    _, tensor = source
    reads = []
    read = type(tensor).pieces
    monkeypatch.setattr(type(tensor), "pieces", lambda self: reads.append(self.name) or read(self))
    how = blockwise_matrix(tensor, symmetric=False)
    made = [
        kind(source=tensor, dtype=dtype, matrix=how)
        for kind, dtype in ((Integers, "uint8"), (Scales, "float32"), (ZeroPoints, "uint8"))
    ]
    for recipe in made:
        values = np.concatenate(list(recipe.pieces()))
        assert (values.shape, values.nbytes) == (recipe.shape, recipe.nbytes)
        assert not recipe.in_place
    assert reads == ["weight"]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("kind", "most", "far"), [("int", 127, 0.5), ("e4m3", 448, 16)])
def test_pieces_give_what_the_whole_does_whatever_the_source(tmp_path, dtype, kind, most, far):
    matrix = np.random.default_rng(1).standard_normal((300, 48)).astype(dtype)
    tensors = {"weight": torch.from_numpy(matrix.astype(np.float32)).to(_torch(dtype))}
    from safetensors.torch import save_file

    save_file(tensors, tmp_path / "model.safetensors")
    tensor = tensors_from_safetensors(tmp_path / "model.safetensors")["weight"]
    numbers, scale_recipe = channelwise.weights_and_scales(tensor, kind, "float32")
    scales = scale_recipe.evaluate()
    wanted = np.abs(matrix.astype(np.float32)).max(axis=1) / most
    np.testing.assert_allclose(scales, wanted, rtol=1e-6)
    found = numbers.evaluate()
    assert (found.shape, found.nbytes) == (numbers.shape, numbers.nbytes) == ((48, 300), 48 * 300)
    floats = found.T.astype(np.float32) * scales[:, None]
    # Half a step: of whole numbers 0.5 everywhere, of e4m3 at most 16 below 448.
    np.testing.assert_allclose(floats, matrix.astype(np.float32), atol=wanted.max() * far * 1.001)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_are_rounded_up_so_that_no_number_is_cut_off(tmp_path, kind, dtype):
    rows = np.random.default_rng(5).standard_normal((200, 48)).astype(np.float32)
    rows *= np.logspace(-5, 3, 200, dtype=np.float32)[:, None]  # the first are near fp16's last
    rows[0] = 0
    safetensors.numpy.save_file({"weight": rows}, tmp_path / "model.safetensors")
    tensor = tensors_from_safetensors(tmp_path / "model.safetensors")["weight"]
    numbers, scale_recipe = channelwise.weights_and_scales(tensor, kind, dtype)
    found, scales = numbers.evaluate().astype(np.float32).T, scale_recipe.evaluate()
    assert scales.dtype == DTYPES[dtype]
    assert np.abs(found).max() <= FORMATS[kind].largest
    exact = np.abs(rows[1:]).max(axis=1) / FORMATS[kind].largest
    assert (scales[1:].astype(np.float32) >= exact).all()
    assert scales[0] == 1
    error = np.linalg.norm(found * scales.astype(np.float32)[:, None] - rows, axis=1)
    assert (error[100:] < 0.04 * np.linalg.norm(rows[100:], axis=1)).all()


def _torch(dtype):
    return getattr(torch, np.dtype(dtype).name)


def graph_of(tensor):
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[batch, {IN}] x, float[{OUT}] bias, float[{OUT}, {IN}] weight) =>
            (float[batch, {OUT}] y, float[batch, {OUT}] z, float[batch, {OUT}] biased) {{
            turned = Transpose<perm = [1, 0]>(weight)
            y = MatMul(x, turned)
            added = MatMul(x, turned)
            z = Add(bias, added)
            biased = Gemm<transB = 1>(x, weight, bias)
        }}"""
    )
    for name in ("weight", "bias"):
        model.graph.initializers[name] = model.graph.inputs.pop()
    bias = np.random.default_rng(3).standard_normal(OUT).astype(np.float32)
    model.graph.initializers["bias"].const_value = ir.tensor(bias, name="bias")
    return model, {"weight": Recipe(source=tensor, dtype="float32")}


def session_of(model, recipes):
    for name, recipe in recipes.items():
        model.graph.initializers[name].const_value = ir.tensor(recipe.evaluate(), name=name)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.onnx"
        path.write_bytes(ir.to_proto(model).SerializeToString())
        return session_from_onnx(path, onnxruntime.SessionOptions(), ["CPUExecutionProvider"])


def run(model, recipes, x):
    assert {*recipes, "bias"} == set(model.graph.initializers)
    bias = model.graph.initializers["bias"].const_value.numpy()
    plain, *biased = session_of(model, recipes).run(None, {"x": x})
    return [plain, *(values - bias for values in biased)]


CASES = [
    (bits, symmetric, method, size)
    for bits, (method, symmetric), size in itertools.product((4, 8), METHODS, (16, 32, 64))
    if (method == "rtn" or bits == 4) and (size == 32 or method == "rtn")
]


@pytest.mark.parametrize(("bits", "symmetric", "method", "size"), CASES)
def test_the_product_is_that_of_the_rounded_weights(source, bits, symmetric, method, size):
    _, tensor = source
    model, recipes = graph_of(tensor)
    how = {"bits": bits, "symmetric": symmetric, "method": method, "block_size": size}
    made = quantise(model, recipes, Measurements(quantisation=Quantisation(**how)))
    assert [node.op_type for node in model.graph] == ["MatMulNBits"] * 3
    for node in model.graph:
        node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    x = np.random.default_rng(2).standard_normal((4, IN)).astype(np.float32)
    wanted = x @ floats_from(blockwise_matrix(tensor, **how), tensor).T
    for found in run(model, made, x):
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(("bits", "symmetric"), itertools.product((4, 8), (True, False)))
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_product_of_activations_of_sixteen_bits_has_scales_of_sixteen(
    source, dtype, bits, symmetric
):
    _, tensor = source
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph ({dtype}[batch, {IN}] x, {dtype}[{OUT}, {IN}] weight, {dtype}[{OUT}] bias) =>
            (float[batch, {OUT}] y) {{
            turned = Transpose<perm = [1, 0]>(weight)
            product = MatMul(x, turned)
            sum = Add(product, bias)
            y = Cast<to = 1>(sum)
        }}"""
    )
    bias = torch.randn(OUT, generator=torch.Generator().manual_seed(3)).to(getattr(torch, dtype))
    for name in ("bias", "weight"):
        model.graph.initializers[name] = model.graph.inputs.pop()
    model.graph.initializers["bias"].const_value = ir.tensor(array_from_tensor(bias), name="bias")
    for value in model.graph.all_nodes():  # as a trace has it
        for output in value.outputs:
            output.dtype = output.dtype or ir.DataType[dtype.upper()]
    how = {"bits": bits, "symmetric": symmetric, "block_size": 32}
    recipes = {"weight": Recipe(source=tensor, dtype=dtype)}
    made = quantise(model, recipes, Measurements(quantisation=Quantisation(**how)))
    (product, _) = model.graph
    assert product.op_type == "MatMulNBits"
    assert product.inputs[5].name == "bias"
    scales = made[f"weight.int{bits}_scales"]
    assert scales.dtype == dtype
    assert scales.evaluate().dtype == np.dtype(DTYPES[dtype])
    assert scales.nbytes == scales.evaluate().nbytes
    for name, recipe in made.items():
        model.graph.initializers[name].const_value = ir.tensor(recipe.evaluate(), name=name)
    product.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    assert compute_in_float32(model) == (dtype == "bfloat16")  # the CPU has no kernel for that
    x = np.random.default_rng(2).standard_normal((4, IN)).astype(DTYPES[dtype])
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    found = run_session(session, ["y"], {"x": x})["y"]
    weights = floats_from(blockwise_matrix(tensor, **how, dtype=dtype), tensor, dtype)
    wanted = x.astype(np.float32) @ weights.T + bias.float().numpy()
    np.testing.assert_allclose(found, wanted, atol=0.02 if dtype == "float16" else 0.15)
    # The weights are those of the rounded scales: none is further away than half of one.
    allowed = np.repeat(np.abs(scales.evaluate().astype(np.float32)), 32, axis=1)[:, :IN]
    assert np.mean(np.abs(weights - source[0]) <= allowed * 0.5001) > 0.95


def test_scales_that_a_dtype_does_not_hold_are_refused(tmp_path):
    matrix = np.full((2, 32), 1e6, np.float32)
    safetensors.numpy.save_file({"weight": matrix}, tmp_path / "model.safetensors")
    tensor = tensors_from_safetensors(tmp_path / "model.safetensors")["weight"]
    how = blockwise_matrix(tensor, dtype="float16")
    with pytest.raises(
        ExportError, match=r"weight: its weights have scales up to 1\.25e\+05, which"
    ):
        Integers(source=tensor, dtype="uint8", matrix=how).evaluate()


@pytest.mark.parametrize("builder", channelwise.BUILDERS)
@pytest.mark.parametrize("output", ["y", "z", "biased"])
def test_a_product_of_integers_is_close_to_that_of_floats(source, monkeypatch, builder, output):
    """Each by itself: without VNNI, ONNX Runtime 1.31 does not open two of one matrix."""
    matrix, tensor = source
    monkeypatch.setattr(channelwise, "BUILDER", builder)
    model, recipes = graph_of(tensor)
    bias = model.graph.initializers["bias"].const_value.numpy()
    model.graph.outputs[:] = [one for one in model.graph.outputs if one.name == output]
    RemoveUnusedNodesPass()(model)
    made = quantise(model, recipes, Measurements(quantisation=DYNAMIC))
    assert set(made) == {"weight.int8", "weight.int8_scales"}
    assert not {"MatMul", "Gemm"} & {node.op_type for node in model.graph}
    x = np.random.default_rng(2).standard_normal((4, IN)).astype(np.float32)
    (found,) = session_of(model, made).run(None, {"x": x})
    found, wanted = found - (0 if output == "y" else bias), x @ matrix.T
    assert found.ravel() @ wanted.ravel() > 0.9999 * np.square(wanted).sum() ** 0.5 * (
        np.square(found).sum() ** 0.5
    )


@pytest.mark.parametrize("static", [True, False])
def test_products_of_the_largest_integers_do_not_saturate(tmp_path, static):
    """As they do on a processor without VNNI, if ONNX Runtime is not told otherwise."""
    matrix = np.full((OUT, IN), 1.0, np.float32)
    safetensors.numpy.save_file({"weight": matrix}, tmp_path / "model.safetensors")
    tensors = tensors_from_safetensors(tmp_path / "model.safetensors")
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[batch, {IN}] x, float[{OUT}, {IN}] weight) => (float[batch, {OUT}] y) {{
            turned = Transpose<perm = [1, 0]>(weight)
            y = MatMul(x, turned)
        }}"""
    )
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    recipes = {"weight": Recipe(source=tensors["weight"], dtype="float32")}
    how = Quantisation(bits=8, activations="static" if static else "dynamic")
    made = quantise(model, recipes, Measurements(quantisation=how, scales={"weight": 1 / 127}))
    (found,) = session_of(model, made).run(None, {"x": np.ones((4, IN), np.float32)})
    np.testing.assert_allclose(found, IN, rtol=1e-3)


def in_halves(model, recipes):
    """The same graph in float16, with heads joined before the product, as an attention does it."""
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float16[batch, 4, 3, {IN // 4}] x, float16[{OUT}, {IN}] weight) =>
            (float16[batch, 3, {OUT}] y) {{
            shape = Constant<value = int64[3] {{0, -1, {IN}}}>()
            rows = Transpose<perm = [0, 2, 1, 3]>(x)
            joined = Reshape(rows, shape)
            turned = Transpose<perm = [1, 0]>(weight)
            y = MatMul(joined, turned)
        }}"""
    model = ir.from_onnx_text(text)
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    return model, {"weight": Recipe(source=recipes["weight"].source, dtype="float16")}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_static_product_in_halves_is_that_of_the_rounded_factors(source, kind):
    model, recipes = in_halves(*graph_of(source[1]))
    how = Quantisation(bits=8, format=kind, activations="static")
    made = quantise(model, recipes, Measurements(quantisation=how, scales={"weight": 0.04}))
    for name, recipe in made.items():
        model.graph.initializers[name].const_value = ir.tensor(recipe.evaluate(), name=name)
    x = np.random.default_rng(2).standard_normal((2, 4, 3, IN // 4)).astype(np.float16)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    (found,) = session.run(None, {"x": x})
    numbers, scales = (recipe.evaluate().astype(np.float32) for recipe in made.values())
    joined = torch.from_numpy(x).transpose(1, 2).reshape(2, 3, IN).float()
    scale = float(model.graph.initializers["weight.input_scale"].const_value.numpy())
    rounded = FORMATS[kind].quantise(joined, scale).numpy() * scale
    np.testing.assert_allclose(found, rounded @ (numbers * scales), atol=0.02, rtol=2e-3)
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2


@pytest.mark.parametrize("given", ["alpha = 2.0, transB = 1", "transA = 1, transB = 1", ""])
@pytest.mark.parametrize("quantisation", [INT4, DYNAMIC])
def test_a_product_of_another_kind_is_left_alone(source, given, quantisation):
    attributes = f"<{given}>" if given else ""
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        graph (float[80, 80] x, float[1500, 80] weight) => (float[80, 1500] y) {{
            y = Gemm{attributes}(x, weight)
        }}"""
    )
    model.graph.initializers["weight"] = model.graph.inputs.pop()
    recipes = {"weight": Recipe(source=source[1], dtype="float32")}
    assert quantise(model, recipes, Measurements(quantisation=quantisation)) == recipes
    assert [node.op_type for node in model.graph] == ["Gemm"]


def test_each_component_gets_what_applies_to_it():
    found = quantisations(PrecisionPolicy.parse("int8"), QuantisationOptions(block_size=64))
    assert (found["vision_encoder"].activations, found["vision_encoder"].block_size) == (
        "dynamic",
        None,
    )
    assert (found["language_model"].activations, found["language_model"].block_size) == (
        "float",
        64,
    )
    assert quantisations(PrecisionPolicy.parse("fp16"), QuantisationOptions()) == {}
    found = quantisations(
        PrecisionPolicy.parse("vision_encoder=fp8,qformer=int8-fp16"), QuantisationOptions()
    )
    assert {name: (one.format, one.activations) for name, one in found.items()} == {
        "vision_encoder": ("e4m3", "static"),
        "qformer": ("int", "static"),
    }


@pytest.mark.parametrize(
    ("precision", "given", "message"),
    [
        ("fp32", {"int8": "static"}, "--int8 is for an int8 vision encoder or Q-Former, and this"),
        ("int4", {"llm_int8": "dynamic"}, "--llm-int8 is for an int8 language model, and this"),
        ("vision_encoder=int8", {"block_size": 64}, "--block-size is for a language model in"),
        ("int8", {"int4_method": "k-quant"}, "--int4-method is for an int4 language model, and"),
        ("fp16", {"sensitive": 0.1}, "--sensitive is for int8, int4 and fp8, and this build has"),
        ("int8-fp16", {"int8": "dynamic"}, "--int8 is for an int8 vision encoder or Q-Former"),
        ("fp8", {"int8": "static"}, "--int8 is for an int8 vision encoder or Q-Former, and this"),
    ],
)
def test_options_that_say_nothing_of_a_build_are_refused(precision, given, message):
    with pytest.raises(OptionError, match=message):
        quantisations(PrecisionPolicy.parse(precision), QuantisationOptions(**given))


def test_images_for_nothing_are_refused(tmp_path):
    options = QuantisationOptions(calibration=tmp_path)
    with pytest.raises(OptionError, match="--calibration is for what is measured"):
        quantisations(PrecisionPolicy.parse("int4"), options)
    assert quantisations(PrecisionPolicy.parse("int8"), options)["qformer"].calibration == tmp_path


def test_floats_of_eight_bits_have_static_activations():
    with pytest.raises(OptionError, match="e4m3 with 8 bits and dynamic activations; expected"):
        Quantisation(bits=8, format="e4m3", activations="dynamic")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"int8": "never"}, "--int8 is 'never'; expected one of dynamic, static"),
        ({"llm_int8": "static"}, "--llm-int8 is 'static'; expected one of weights, dynamic"),
        ({"int4_method": "awq"}, "--int4-method is 'awq'; expected one of rtn, k-quant"),
        ({"block_size": 48}, "--block-size is 48; expected one of 16, 32, 64, 128, 256"),
        ({"sensitive": 1.5}, "--sensitive is 1.5; expected a share from 0 to 1"),
    ],
)
def test_options_that_no_build_can_have_are_refused(given, message):
    with pytest.raises(OptionError, match=message):
        QuantisationOptions(**given)
