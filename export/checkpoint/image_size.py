"""Adapts a checkpoint to images of another size by interpolating its position embeddings.

As the originals do it (transformers' `interpolate_pos_encoding`; LAVIS' `interpolate_pos_embed`,
eva_vit.py): the embeddings of the patches are taken for an image, and resized bicubically; the
class token's stays as it is.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.export.checkpoint.checkpoint import Checkpoint, resize
from iblip.export.errors import OptionError
from iblip.export.weights.weight import SourceTensor, Weight

POSITIONS = "vision_model.embeddings.position_embedding"


@dataclass(frozen=True, kw_only=True)
class InterpolatedPositions:
    """A `Weight`: position embeddings `[1, 1 + side * side, width]`, interpolated bicubically.

    Attributes:
        source: the checkpoint's own embeddings, `[1, 1 + own * own, width]`.
        side: number of patches along a side of the new size.
    """

    source: Weight
    side: int

    @property
    def name(self) -> str:
        """Name of the source tensor."""
        return self.source.name

    @property
    def dtype(self) -> str:
        """Always float32, in which the interpolation is computed."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """`[1, 1 + side * side, width]`."""
        return 1, 1 + self.side * self.side, self.source.shape[2]

    @property
    def sources(self) -> tuple[SourceTensor, ...]:
        """The sources of the checkpoint's own embeddings."""
        return self.source.sources

    def read(self) -> npt.NDArray[Any]:
        """Interpolates the embeddings of the patches; the class token's is copied."""
        import torch

        table = torch.from_numpy(np.array(self.source.read(), dtype=np.float32))
        own = math.isqrt(table.shape[1] - 1)
        # [1, own * own, width] → [1, width, own, own]
        grid = table[:, 1:].reshape(1, own, own, -1).permute(0, 3, 1, 2)
        size = (self.side, self.side)
        grid = torch.nn.functional.interpolate(grid, size, mode="bicubic", align_corners=False)
        patches = grid.permute(0, 2, 3, 1).flatten(1, 2)
        resized: npt.NDArray[Any] = torch.cat([table[:, :1], patches], dim=1).numpy()
        return resized

    def pieces(self) -> Iterator[npt.NDArray[Any]]:
        """Yields the whole table, which is small."""
        yield self.read()


def at_image_size(checkpoint: Checkpoint, size: int) -> Checkpoint:
    """Returns `checkpoint` for square images of `size` pixels a side.

    Raises:
        OptionError: the size is not a multiple of the patch size, or the patches cannot be merged
            as the checkpoint merges them.
    """
    vision = checkpoint.config.vision_config
    if size == vision.image_size:
        return checkpoint
    patch = vision.patch_size
    if size < patch or size % patch:
        near = patch * max(1, round(size / patch))
        raise OptionError(
            f"--image-size is {size}; expected a multiple of {patch}, the side of this model's"
            f" patches, such as {near}"
        )
    side = size // patch
    config = copy.deepcopy(checkpoint.config)
    config.vision_config.image_size = size
    if checkpoint.projector == "patch_merge":
        config.num_query_tokens = _merged_patches(side * side, config.merged_patches, size)
    tensors = dict(checkpoint.tensors)
    if POSITIONS in tensors:  # if it is missing, `bind` says so
        table = tensors[POSITIONS]
        if isinstance(table, InterpolatedPositions):  # an original's file of yet another size
            table = table.source
        tensors[POSITIONS] = InterpolatedPositions(source=table, side=side)
    resized = replace(checkpoint, config=config, tensors=tensors)
    resize(resized.processor.image_processor, size)  # an original's has been made already
    return resized


def _merged_patches(patches: int, merged: int, size: int) -> int:
    if patches % merged:
        raise OptionError(
            f"--image-size {size} gives {patches} patches, and this model takes {merged} of them"
            " together. Choose another size."
        )
    return patches // merged
