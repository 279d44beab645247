"""Weights of OpenVINO models: they stay in the files from which the graph reads them.

OpenVINO's own conversion of `MatMulNBits` copies its integers, and its matmuls copy them once more,
in the order of their kernels. Importing this module loads OpenVINO.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from ctypes import CDLL, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from openvino import Shape, Tensor, Type, opset13
from openvino.op import Constant

NAME, DOMAIN = "MatMulNBits", "com.microsoft"
MAPPINGS = Path("/proc/self/maps")


def convert(shared: list[Any], node: Any) -> list[Any]:
    """Converts one node of the ONNX graph; OpenVINO's frontend calls it.

    Args:
        shared: is given what owns the memory of the new constants, to outlive them.
        node: OpenVINO's context of the node: its attributes, and its inputs as outputs of nodes.
            Inputs are `A`, `B` `[N, blocks, bytes]`, `scales` `[N, blocks]`, and, each of which may
            be missing, `zero_points` `[N, bytes]`, `g_idx` and `bias` `[N]`
            (ONNX Runtime's docs/ContribOperators.md).
    """
    columns, rows, bits, size = (
        node.get_attribute(name) for name in ("K", "N", "bits", "block_size")
    )
    found: list[Any] = [node.get_input(index) for index in range(node.get_input_size())]
    found = [one if one.get_node().get_type_name() != "NullNode" else None for one in found]
    activations, integers, scales, zeros, _, bias = found + [None] * (6 - len(found))
    blocks, stored = math.ceil(columns / size), Type.u4 if bits == 4 else Type.u8

    def view(source: Any, shape: Sequence[int], dtype: Any) -> Any:
        constant = source.get_node()
        shared.append((constant, constant.data))
        tensor = Tensor(shared[-1][1], Shape(shape), dtype)
        shared.append(tensor)
        return Constant(tensor, shared_memory=True)

    kind = scales.get_element_type()
    weights = opset13.convert(view(integers, [rows, blocks, size], stored), kind)
    if zeros is None:
        zero: Any = opset13.constant(2 ** (bits - 1), stored)
    elif bits == 8 or blocks % 2 == 0:
        zero = view(zeros, [rows, blocks, 1], stored)
    else:
        zero = opset13.constant(_unpacked(zeros.get_node().data, rows, blocks), stored)
    weights = opset13.subtract(weights, opset13.convert(zero, kind))
    if scales.get_node().get_type_name() == "Constant":
        factors = view(scales, [rows, blocks, 1], kind)
    else:
        factors = opset13.reshape(scales, [rows, blocks, 1], False)
    weights = opset13.reshape(opset13.multiply(weights, factors), [rows, blocks * size], False)
    if blocks * size != columns:
        weights = opset13.slice(weights, [0], [columns], [1], [1])
    if kind != activations.get_element_type():
        weights = opset13.convert(weights, activations.get_element_type())
    mixed = opset13.matmul(activations, weights, False, True)
    return [(mixed if bias is None else opset13.add(mixed, bias)).output(0)]


def _unpacked(packed: npt.NDArray[np.uint8], rows: int, blocks: int) -> npt.NDArray[np.uint8]:
    """Zero points `[rows, blocks, 1]` of rows that end within a byte."""
    pairs = packed.reshape(rows, -1, 1)
    zeros = np.concatenate([pairs & 15, pairs >> 4], 2, dtype=np.uint8).reshape(rows, -1, 1)
    return zeros[:, :blocks]


def release(directory: Path) -> None:
    """Gives back the memory in which this process holds a directory's files.

    What is mapped stays mapped, and is read from the file when it is used again. Only read-only
    mappings are touched, so nothing can be lost. Does nothing where the system has no `/proc`.
    """
    if not MAPPINGS.exists():
        return
    files = {str(path.resolve()) for path in directory.iterdir()}
    advise = CDLL(None).madvise
    advise.argtypes = [c_void_p, c_size_t, c_int]
    for line in MAPPINGS.read_text().splitlines():
        # Addresses, permissions, offset, device and inode, then the path, which may have spaces.
        addresses, permissions, *_, path = [*line.split(maxsplit=5), ""][:6]
        if path in files and "w" not in permissions:
            start, end = (int(one, 16) for one in addresses.split("-"))
            advise(start, end - start, mmap.MADV_DONTNEED)
