"""Image features of pool images, kept on disk while the vision encoder stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .loop import pixel_values
from .pools import Pool

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]
Features = np.ndarray[tuple[int, int, int], np.dtype[np.float16]]


@torch.no_grad()
def image_features(vision_model: nn.Module, pool: Pool, rows: Rows) -> Tensor:
    """Vision features of some images: float32 `[rows, patches + 1, width]`."""
    features: Tensor = vision_model(pixel_values=pixel_values(pool.pixels[rows])).last_hidden_state
    return features


def frozen_features(vision_model: nn.Module, pool: Pool, path: Path) -> Features:
    """Vision features of a whole pool, kept in `path`: float16 `[count, patches + 1, width]`.

    They hold as long as the vision encoder stays as it is; delete the file with the encoder's.
    """
    if not path.exists():
        vision_model.train(False)
        parts = np.array_split(np.arange(len(pool)), max(1, len(pool) // 500))
        features = [image_features(vision_model, pool, rows).half().numpy() for rows in parts]
        beside = path.with_suffix(".partial.npy")
        np.save(beside, np.concatenate(features))
        beside.rename(path)
    stored: Features = np.load(path)
    return stored
