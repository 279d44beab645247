"""LoRA merged into a weight, in blocks of rows, against the same sum written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.errors import CheckpointError
from iblip.export.weights import merging
from iblip.export.weights.merging import merge_low_rank
from iblip.export.weights.recipe import Recipe

SCALE = 0.75


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Tensors as they come from a file."""

    def weights(**tensors: torch.Tensor) -> Any:
        save_file(tensors, tmp_path / "tensors.safetensors")
        return tensors_from_safetensors(tmp_path / "tensors.safetensors")

    return weights


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(merging, "BLOCK", 4 * 8 * 5)  # five rows of eight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rows_are_merged_in_blocks(write: Any, dtype: torch.dtype) -> None:
    weight, up, down = values(13, 8, dtype=dtype), values(13, 3), values(3, 8, dtype=dtype)
    read = write(weight=weight, up=up, down=down)
    merged = merge_low_rank(read["weight"], up=read["up"], down=read["down"], scale=SCALE)
    expected = weight.float() + SCALE * (up @ down.float())
    np.testing.assert_allclose(merged.read(), expected, rtol=1e-6, atol=1e-6)
    assert [len(piece) for piece in merged.pieces()] == [5, 5, 3]
    assert merged.dtype == "float32"
    assert merged.shape == (13, 8)
    assert merged.sources == (read["weight"], read["up"], read["down"])
    # An initializer of the file's own dtype is not the file's bytes.
    assert Recipe(source=merged, dtype=str(dtype).removeprefix("torch.")).in_place is None


def test_a_table_is_merged_transposed(write: Any) -> None:
    table, up, down = values(13, 8), values(8, 3), values(3, 13)
    read = write(table=table, up=up, down=down)
    merged = merge_low_rank(
        read["table"], up=read["up"], down=read["down"], scale=SCALE, transposed=True
    )
    np.testing.assert_allclose(merged.read(), table + SCALE * (up @ down).T, rtol=1e-6, atol=1e-6)


def test_a_convolution_is_merged_as_a_matrix(write: Any) -> None:
    kernel, up, down = values(6, 2, 2, 2), values(6, 3, 1, 1), values(3, 2, 2, 2)
    read = write(kernel=kernel, up=up, down=down)
    merged = merge_low_rank(read["kernel"], up=read["up"], down=read["down"], scale=SCALE)
    product = (up.reshape(6, 3) @ down.reshape(3, 8)).reshape(kernel.shape)
    np.testing.assert_allclose(merged.read(), kernel + SCALE * product, rtol=1e-6, atol=1e-6)


def test_a_first_axis_of_one_is_no_row(write: Any) -> None:
    queries, up, down = values(1, 7, 8), values(7, 3), values(3, 8)
    read = write(queries=queries, up=up, down=down)
    merged = merge_low_rank(read["queries"], up=read["up"], down=read["down"], scale=SCALE)
    np.testing.assert_allclose(merged.read(), queries + SCALE * (up @ down), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_sets_the_length_of_what_makes_an_output(write: Any, transposed: bool) -> None:
    weight, magnitude = values(13, 8), values(8 if transposed else 13).abs()
    up, down = values(len(magnitude), 3), values(3, 13 if transposed else 8)
    read = write(weight=weight, up=up, down=down, magnitude=magnitude)
    merged = merge_low_rank(
        read["weight"],
        up=read["up"],
        down=read["down"],
        scale=SCALE,
        transposed=transposed,
        magnitude=read["magnitude"],
    )
    product = up @ down
    total = weight + SCALE * (product.T if transposed else product)
    lengths = total.norm(dim=0 if transposed else 1, keepdim=True)
    factors = magnitude[None] if transposed else magnitude[:, None]
    np.testing.assert_allclose(merged.read(), factors * total / lengths, rtol=1e-5, atol=1e-6)


def test_a_second_adapter_is_merged_into_the_first(write: Any) -> None:
    weight, up, down = values(13, 8), values(13, 3), values(3, 8)
    read = write(weight=weight, up=up, down=down)
    first = merge_low_rank(read["weight"], up=read["up"], down=read["down"], scale=1.0)
    second = merge_low_rank(first, up=read["up"], down=read["down"], scale=-1.0)
    np.testing.assert_allclose(second.read(), weight, rtol=1e-5, atol=1e-5)
    assert second.sources[0] == read["weight"]


@pytest.mark.parametrize(
    ("up", "down"), [((12, 3), (3, 8)), ((13, 3), (3, 9)), ((13, 2), (3, 8)), ((13,), (3, 8))]
)
def test_shapes_that_do_not_fit_are_named(write: Any, up: Any, down: Any) -> None:
    read = write(weight=values(13, 8), up=values(*up), down=values(*down))
    with pytest.raises(CheckpointError, match=r"weight has shape \[13, 8\].*up .*down"):
        merge_low_rank(read["weight"], up=read["up"], down=read["down"], scale=1.0)
