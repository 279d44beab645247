import numpy as np
import pytest
from safetensors.numpy import save_file

from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.errors import CheckpointError, ExportError
from iblip.export.weights.binding import bind
from iblip.export.weights.recipe import Recipe


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    values = {
        "layer.0.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.0.bias": np.array([1e5, -2.0], np.float32),
    }
    save_file(values, path)
    return path


def test_a_tensor_reads_as_it_was_written(file):
    tensor = tensors_from_safetensors(file)["layer.0.weight"]
    np.testing.assert_array_equal(tensor.read(), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_bytes_that_need_no_change_are_not_copied(file):
    recipe = Recipe(source=tensors_from_safetensors(file)["layer.0.weight"], dtype="float32")
    assert recipe.in_place
    assert isinstance(recipe.evaluate().base, np.memmap)


def test_a_cast_rounds_to_the_wanted_dtype(file):
    recipe = Recipe(source=tensors_from_safetensors(file)["layer.0.weight"], dtype="float16")
    assert recipe.evaluate().dtype == np.float16
    assert recipe.nbytes == 12


def test_a_weight_beyond_fp16_stops_the_build(file):
    recipe = Recipe(source=tensors_from_safetensors(file)["layer.0.bias"], dtype="float16")
    with pytest.raises(ExportError, match=r"layer\.0\.bias: 1 of 2 weights leave the range"):
        recipe.evaluate()


@pytest.mark.parametrize("keep", [4, 40, -1])
def test_a_truncated_file_is_told(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        tensors_from_safetensors(file)


def test_binding_lists_every_fault_with_the_nearest_name(file):
    tensors = tensors_from_safetensors(file)
    wanted = {"layer.0.weights": ((2, 3), "float32"), "layer.0.bias": ((3,), "float32")}
    with pytest.raises(CheckpointError) as caught:
        bind(wanted, tensors, {})
    message = str(caught.value)
    assert "layer.0.weights is missing (nearest: layer.0.weight)" in message
    assert "layer.0.bias has shape [2], expected [3]" in message


def test_a_tied_weight_is_found_under_its_other_name(file):
    tensors = tensors_from_safetensors(file)
    recipes = bind({"head": ((2,), "float32")}, tensors, {"head": "layer.0.bias"})
    assert recipes["head"].source.name == "layer.0.bias"


def test_a_dtype_that_no_graph_takes_matters_only_where_it_is_wanted(file):
    save_file({"mask": np.ones(2, bool), "weight": np.ones(2, np.float64)}, file)
    tensors = tensors_from_safetensors(file)
    assert bind({}, tensors, {}) == {}
    with pytest.raises(CheckpointError, match="weight has dtype F64; supported: uint8, int32"):
        bind({"weight": ((2,), "float32")}, tensors, {})
