"""Which run stands in for inputs of a shape, where runs are CUDA graphs."""

import numpy as np
import pytest

from iblip.engines.onnxruntime.captured import fill_up, sizes_of_run
from iblip.export.artifact.contract import Contract, TensorSpec

CONTRACT = Contract(
    inputs=(
        TensorSpec(name="image_embeds", dtype="float16", axes=("batch", 5, 4)),
        TensorSpec(name="ids", dtype="int64", axes=("batch", "instruction")),
    ),
    outputs=(TensorSpec(name="visual_prompt", dtype="float16", axes=("batch", 2, 4)),),
)


def feed(batch, instruction):
    return {"image_embeds": np.zeros((batch, 5, 4)), "ids": np.zeros((batch, instruction))}


@pytest.mark.parametrize(
    ("batch", "instruction", "run"),
    [(1, 1, (1, 8)), (2, 8, (2, 8)), (3, 9, (4, 16)), (5, 16, (8, 16)), (8, 23, (8, 24))],
)
def test_batch_and_instruction_are_filled_up(batch, instruction, run):
    sizes = sizes_of_run(CONTRACT, feed(batch, instruction))
    assert sizes == {"batch": run[0], "instruction": run[1]}


def test_a_large_batch_or_an_unknown_axis_is_run_as_it_is():
    assert sizes_of_run(CONTRACT, feed(9, 8)) is None
    other = TensorSpec(name="ids", dtype="int64", axes=("batch", "sequence"))
    contract = Contract(inputs=(CONTRACT.inputs[0], other), outputs=CONTRACT.outputs)
    assert sizes_of_run(contract, feed(1, 8)) is None


def test_a_run_without_a_graph_has_its_instruction_filled_up_with_zeros():
    given = {"image_embeds": np.ones((9, 5, 4)), "ids": np.ones((9, 5), np.int64)}
    filled = fill_up(CONTRACT, given)
    assert filled["image_embeds"] is given["image_embeds"]
    np.testing.assert_array_equal(filled["ids"], [[1, 1, 1, 1, 1, 0, 0, 0]] * 9)
