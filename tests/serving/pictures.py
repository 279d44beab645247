"""Images that tests send."""

import io

import numpy as np
from PIL import Image


def picture(width=70, height=40, seed=0):
    """Smooth enough that a JPEG keeps it, uneven enough that a rotation shows."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
