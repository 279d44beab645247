"""Casts arrays from one dtype to another with torch, which is several times as fast as numpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.contract import DTYPES

if TYPE_CHECKING:
    import torch


def tensor_from_array(values: npt.NDArray[Any]) -> torch.Tensor:
    """Returns a tensor over the array's memory. It must not be written to."""
    import torch

    values = np.ascontiguousarray(values)
    short = values.dtype.name == "bfloat16"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns where the array may not be written
        tensor = torch.from_numpy(values.view(np.int16) if short else values)
    return tensor.view(torch.bfloat16) if short else tensor


def array_from_tensor(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Returns an array over the tensor's memory; the inverse of `tensor_from_array`."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(DTYPES["bfloat16"])
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def cast(values: npt.NDArray[Any], dtype: str) -> tuple[npt.NDArray[Any], bool]:
    """Returns the values in `dtype`, a key of `artifact.contract.DTYPES`, and if all are finite.

    They are not examined where that dtype holds every value of their own, or no infinity.
    """
    import torch

    array = np.empty(values.shape, DTYPES[dtype])  # in huge pages, which torch does not ask for
    source, result = tensor_from_array(values), tensor_from_array(array)
    result.copy_(source)
    widened = source.is_floating_point() and result.dtype == torch.promote_types(
        source.dtype, result.dtype
    )
    if widened or not result.is_floating_point() or not result.numel():
        finite = True
    else:  # the greatest magnitude is NaN if any value is
        finite = bool(result.abs().amax().isfinite())
    return array, finite
