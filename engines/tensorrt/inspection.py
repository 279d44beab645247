"""What TensorRT's own inspector says of a plan: its layers, as they were fused and chosen."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from engines.tensorrt.libraries import Library
from engines.tensorrt.loading import open_plan
from export.errors import EngineError


def engine_information(path: Path, flags: Collection[str], library: Library) -> Any:
    """The inspector's JSON of a whole engine: `Layers`, `Bindings` or `I/O Tensors`.

    Args:
        path: of the plan.
        flags: that it was built with, keys of `engines.tensorrt.options.FLAGS`.
        library: of its kind, on a machine with a GPU of its own.

    Raises:
        EngineError: the plan is missing, or does not load here, or its information is no JSON.
    """
    plan = open_plan(path, flags, library)
    inspector = plan.engine.create_engine_inspector()
    text = inspector.get_engine_information(library.module.LayerInformationFormat.JSON)
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(
            f"{library.kind}'s inspector gives no JSON of {path}: {text[:200]!r}"
        ) from error
