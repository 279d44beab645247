"""Images as LAVIS has them, normalised float tensors, from and to 8-bit pixels.

With torch installed these are torch's tensors, without it an `Array`. Source of constants and
arithmetic: salesforce/LAVIS, `lavis/processors/blip_processors.py`, `BlipImageBaseProcessor`.
The model's own normalisation is inside its graph; here LAVIS's is only applied and undone.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from iblip.export.errors import InputError

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(3, 1, 1)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32).reshape(3, 1, 1)
"""Of red, green and blue, `[3, 1, 1]`, on a scale from 0 to 1."""

SLACK = 1.0
"""How far a value may be beyond 0 and 255: tensors of 16 bits round."""

if TYPE_CHECKING:
    _Base = npt.NDArray[Any]
else:
    _Base = np.ndarray


class Array(_Base):
    """A numpy array with the methods of a tensor that LAVIS's examples call.

    It stays in this process's memory, whatever device it is told to go to.
    """

    def unsqueeze(self, dim: int) -> Self:
        """The array with a new axis of size 1."""
        return np.expand_dims(self, dim).view(type(self))

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """The array itself."""
        return self

    cpu = cuda = to

    def half(self) -> Self:
        """The array as float16."""
        return self.astype(np.float16).view(type(self))

    def float(self) -> Self:
        """The array as float32."""
        return self.astype(np.float32).view(type(self))

    def dim(self) -> int:
        """Number of axes."""
        return self.ndim


def tensor_from_pixels(pixels: npt.NDArray[np.uint8]) -> Any:
    """Normalises one image as LAVIS does.

    Args:
        pixels: uint8 `[height, width, 3]`, RGB.

    Returns:
        float32 `[3, height, width]`: a `torch.Tensor` where torch is installed, else an `Array`.
    """
    scaled = np.moveaxis(pixels, 2, 0).astype(np.float32) / np.float32(255)
    values = np.ascontiguousarray((scaled - MEAN) / STD)
    if find_spec("torch") is None:
        return values.view(Array)
    return import_module("torch").from_numpy(values)


def is_normalised(image: Any) -> bool:
    """Whether an image is a tensor of floats, torch's or numpy's, not pixels, a path or a file."""
    return bool(
        (hasattr(image, "is_floating_point") and image.is_floating_point())
        or (isinstance(image, np.ndarray) and image.dtype.kind == "f")
    )


def pixels_from_tensor(tensor: Any, size: tuple[int, int]) -> list[npt.NDArray[np.uint8]]:
    """Undoes the normalisation of a batch.

    The pixels that `tensor_from_pixels` was given come back exactly, from float16 too; values in
    between, as augmentation leaves them, are rounded to 8 bits.

    Args:
        tensor: floats `[batch, 3, height, width]`, one image `[3, height, width]`, or videos
            `[batch, 3, frames, height, width]`.
        size: height and width that the model takes.

    Returns:
        For each image uint8 `[height, width, 3]`, for each video `[frames, height, width, 3]`.

    Raises:
        InputError: it has another shape, or values that no normalised image has.
    """
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    values = np.asarray(tensor, np.float32)
    if values.ndim == 3:
        values = values[None]
    if values.ndim not in (4, 5) or values.shape[1] != 3 or values.shape[-2:] != size:
        height, width = size
        raise InputError(
            f"the image is a tensor of shape {list(values.shape)}; expected [batch, 3, {height}, "
            f'{width}], a batch of what vis_processors["eval"] returns'
        )
    channels = np.moveaxis(values, 1, -3)  # [batch, (frames,) 3, height, width]
    levels = (channels * STD + MEAN) * np.float32(255)
    if not (levels.min() >= -SLACK and levels.max() <= 255 + SLACK):  # false for NaN, too
        raise InputError(
            f"the image is a tensor with values from {values.min():.4g} to {values.max():.4g}; "
            'expected what vis_processors["eval"] returns, normalised with LAVIS\'s mean and '
            "standard deviation"
        )
    pixels = np.moveaxis(np.rint(levels).clip(0, 255).astype(np.uint8), -3, -1)
    return list(np.ascontiguousarray(pixels))
