import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.export.artifact.contract import DTYPES, Contract, TensorSpec
from iblip.export.errors import ContractError

CONTRACT = Contract(
    inputs=(
        TensorSpec(name="ids", dtype="int64", axes=("batch", "instruction")),
        TensorSpec(name="mask", dtype="int64", axes=("batch", "instruction")),
        TensorSpec(name="embeds", dtype="float32", axes=("batch", 4)),
    ),
    outputs=(),
)


def feed(**changes):
    ids = np.zeros((2, 3), np.int64)
    return {"ids": ids, "mask": ids, "embeds": np.zeros((2, 4), np.float32)} | changes


def test_a_feed_that_fits_passes():
    CONTRACT.check_feed(feed())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.zeros((2, 3), np.int32)}, "'ids' is int32, expected int64"),
        ({"embeds": np.zeros((2, 5), np.float32)}, r"'embeds' has shape \[2, 5\], expected embeds"),
        ({"mask": np.zeros((2, 7), np.int64)}, "axis 'instruction' is 7 in 'mask' but 3 in 'ids'"),
        ({"ids": np.zeros(3, np.int64)}, r"'ids' has shape \[3\], expected 2 axes"),
        ({"other": np.zeros(1)}, "'other' is not an input"),
    ],
)
def test_a_feed_that_does_not_fit_is_told_why(changes, message):
    with pytest.raises(ContractError, match=message):
        CONTRACT.check_feed(feed(**changes))


def test_every_fault_is_told_at_once():
    with pytest.raises(ContractError, match=r"'mask' is missing; 'ids' is int32"):
        CONTRACT.check_feed({"ids": np.zeros((2, 3), np.int32), "embeds": feed()["embeds"]})


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ContractError, match=r"'float8'; known: uint8"):
        TensorSpec(name="x", dtype="float8", axes=(1,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_has_as_many_bytes_as_numpys(dtype):
    spec = TensorSpec(name="x", dtype=dtype, axes=(1,))
    assert spec.itemsize == spec.numpy_dtype.itemsize


names = st.text(min_size=1, max_size=8)
specs = st.builds(
    TensorSpec,
    name=names,
    dtype=st.sampled_from(sorted(DTYPES)),
    axes=st.lists(st.one_of(st.integers(1, 9), names), max_size=4).map(tuple),
)


@given(st.builds(Contract, inputs=st.lists(specs).map(tuple), outputs=st.lists(specs).map(tuple)))
def test_json_gives_the_same_contract_back(contract):
    assert Contract.from_json(contract.to_json()) == contract
