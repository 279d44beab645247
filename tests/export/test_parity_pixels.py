"""The parity report's comparison of pixels."""

from __future__ import annotations

from dataclasses import replace

from PIL import Image

from iblip.export.checkpoint.checkpoint import DEMO, checkpoint_from_directory
from iblip.export.checkpoint.facts import preprocessing
from iblip.export.verification.preprocessing import VARIANTS, pixel_differences


def test_another_filter_is_told_wherever_it_shows(checkpoints):
    checkpoint = checkpoint_from_directory(DEMO)
    settings = preprocessing(checkpoint)
    with Image.open(checkpoints / "heldout" / "images" / "heldout-001.webp") as image:
        same = pixel_differences(checkpoint, settings, [image])
        other = pixel_differences(checkpoint, replace(settings, resample="BILINEAR"), [image])
    assert [found.variant for found in same] == list(VARIANTS)
    assert all(same)
    assert {found.variant for found in other if found} <= {"as it is", "one pixel"}
    large = next(found for found in other if found.variant.startswith("large"))
    assert large.different > 0 < large.largest
