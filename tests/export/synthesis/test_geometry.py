"""Names and shapes of synthetic checkpoints, against the table and the demo checkpoints."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.directory import tensors_from_directory
from iblip.export.models.table import MODELS
from iblip.export.synthesis.geometry import shapes

PARTS = {
    "vision_model.": "vision_encoder",
    "qformer.": "qformer",
    "query_tokens": "qformer",
    "language_projection.": "projection",
    "language_model.": "language_model",
}


def patterns(names) -> set[str]:
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_checkpoint_has_the_parameters_of_its_row_and_the_names_of_its_demo(model):
    found = shapes(model)
    counts = Counter(dict.fromkeys(model.parameters, 0))
    for name, shape in found.items():
        part = next(part for start, part in PARTS.items() if name.startswith(start))
        counts[part] += math.prod(shape)
    assert counts == model.parameters
    demo = tensors_from_directory(DEMO.parent / model.demo)
    assert patterns(found) == patterns(demo)
