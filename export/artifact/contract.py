"""The contract of a graph: the name, dtype and axes of every tensor, written once.

The exporter, the optimisation profile, the `config.pbtxt` and the client all derive from it.
Knows numpy only, so that a server process can read it without the tracing libraries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from iblip.export.errors import ContractError

_NUMPY: Mapping[str, npt.DTypeLike] = {
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
    "float16": np.float16,
    "bfloat16": None,
    "float32": np.float32,
}


class _Dtypes(Mapping[str, npt.DTypeLike]):
    """Imports ml_dtypes where bfloat16 is looked up: a client never does, and is without it."""

    def __getitem__(self, name: str) -> npt.DTypeLike:
        if name != "bfloat16":
            return _NUMPY[name]
        import ml_dtypes

        dtype: npt.DTypeLike = ml_dtypes.bfloat16
        return dtype

    def __contains__(self, name: object) -> bool:
        return name in _NUMPY

    def __iter__(self) -> Iterator[str]:
        return iter(_NUMPY)

    def __len__(self) -> int:
        return len(_NUMPY)


DTYPES: Mapping[str, npt.DTypeLike] = _Dtypes()
"""numpy's (or ml_dtypes') dtype for each name that a contract may use."""

Axis = int | str
"""A fixed size, or the name of a dynamic axis (`"batch"`, `"instruction"`, `"past"`)."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a graph.

    Attributes:
        name: the tensor's name in the graph, the engine and Triton.
        dtype: a key of `DTYPES`.
        axes: for each axis a size in elements, or the name of a dynamic axis.

    Raises:
        ContractError: the dtype is not a key of `DTYPES`, or a size is not positive.
    """

    name: str
    dtype: str
    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            raise ContractError(f"tensor {self.name!r} has dtype {self.dtype!r}; known: {known}")
        for axis in self.axes:
            if isinstance(axis, int) and axis < 1:
                raise ContractError(f"tensor {self.name!r} has an axis of size {axis}")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """numpy's dtype (for bfloat16, ml_dtypes')."""
        return np.dtype(DTYPES[self.dtype])

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 2 if self.dtype == "bfloat16" else self.numpy_dtype.itemsize

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(str(axis) for axis in self.axes)}]"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return {"name": self.name, "dtype": self.dtype, "axes": list(self.axes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(name=data["name"], dtype=data["dtype"], axes=tuple(data["axes"]))


@dataclass(frozen=True, kw_only=True)
class Contract:
    """Every input and output of a graph, in the graph's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        """The input called `name`. Raises `ContractError` where there is none."""
        return _by_name(self.inputs, name)

    def output(self, name: str) -> TensorSpec:
        """The output called `name`. Raises `ContractError` where there is none."""
        return _by_name(self.outputs, name)

    def check_feed(self, feed: Mapping[str, npt.NDArray[Any]]) -> None:
        """Checks names, dtypes, ranks, fixed sizes, and that dynamic axes agree with one another.

        Raises:
            ContractError: listing every fault, with what was given and what is expected.
        """
        _check_feed(self.inputs, feed)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            inputs=tuple(TensorSpec.from_json(item) for item in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(item) for item in data["outputs"]),
        )


def _by_name(specs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise ContractError(f"no tensor {name!r}; there are {', '.join(s.name for s in specs)}")


def _check_feed(specs: tuple[TensorSpec, ...], feed: Mapping[str, npt.NDArray[Any]]) -> None:
    names = {spec.name for spec in specs}
    faults = [f"{name!r} is missing" for name in sorted(names - feed.keys())]
    faults += [f"{name!r} is not an input" for name in sorted(feed.keys() - names)]
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name in feed:
            faults += _find_faults(spec, feed[spec.name], sizes)
    if faults:
        lines = "; ".join(faults)
        raise ContractError(f"{lines}. The contract is: {', '.join(str(s) for s in specs)}")


def _find_faults(
    spec: TensorSpec, array: npt.NDArray[Any], sizes: dict[str, tuple[int, str]]
) -> list[str]:
    """Compares an array with its spec; `sizes` collects those of dynamic axes, and their tensor."""
    faults = []
    if array.dtype != spec.numpy_dtype:
        faults.append(f"{spec.name!r} is {array.dtype}, expected {spec.dtype}")
    if array.ndim != len(spec.axes):
        shape = f"shape {list(array.shape)}"
        return [*faults, f"{spec.name!r} has {shape}, expected {len(spec.axes)} axes"]
    for axis, size in zip(spec.axes, array.shape, strict=True):
        if isinstance(axis, int):
            if size != axis:
                faults.append(f"{spec.name!r} has shape {list(array.shape)}, expected {spec}")
        elif sizes.setdefault(axis, (size, spec.name))[0] != size:
            other_size, other = sizes[axis]
            faults.append(f"axis {axis!r} is {size} in {spec.name!r} but {other_size} in {other!r}")
    return faults
