"""What TensorRT's own inspector says of a plan: its layers, as they were fused and chosen."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from iblip.engines.tensorrt.collection import no_collection
from iblip.engines.tensorrt.libraries import Library
from iblip.engines.tensorrt.loading import open_plan
from iblip.engines.tensorrt.readback import PRECISIONS, SHOWN
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError

WORDS: Mapping[str, str] = {
    "HALF": r"Half|FP16",
    "BF16": r"BF16|BFloat16",
    "FLOAT": r"Float|FP32",
    "INT8": r"Int8",
    "FP8": r"FP8",
}
"""A dtype to how `Format/Datatype` of the inspector's JSON spells it: a word (`Half`), or one in a
sentence (`Row major linear FP16 format`). Source: NVIDIA's documentation, "Engine Inspector"."""


@no_collection()
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


def layers_of_engine(information: Any) -> list[tuple[str, frozenset[str]]]:
    """Name and dtypes of every layer of an engine, of its inputs and outputs that have one.

    Args:
        information: as from `engine_information`, of an engine that was built to be inspected.
    """
    return [
        (str(layer.get("Name", "")), frozenset(_dtypes(layer)))
        for layer in information.get("Layers", ())
        if isinstance(layer, dict)  # else it has nothing but a name
    ]


def _dtypes(layer: Mapping[str, Any]) -> list[str]:
    tensors = (*layer.get("Inputs", ()), *layer.get("Outputs", ()))
    told = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in tensors)
    return [dtype for dtype, words in WORDS.items() if re.search(rf"\b({words})\b", told, re.I)]


def check_engine(information: Any, graph: OnnxGraph) -> dict[str, int]:
    """How many layers of a built engine have which dtype.

    Layers are fused by then and have lost the rules of `readback`; that some compute in what was
    asked for is still to be seen.

    Raises:
        EngineError: none does, with the names of those that there are.
    """
    layers = layers_of_engine(information)
    counts = Counter(dtype for _, dtypes in layers for dtype in dtypes)
    rule = PRECISIONS[graph.precision]
    wanted = rule.quantised or rule.matrices
    if counts and not counts[wanted]:
        names = ", ".join(name for name, dtypes in layers[:SHOWN] if dtypes)
        raise EngineError(
            f"the engine of {graph.path} was asked for in {graph.precision}, but none of its "
            f"{len(layers)} layers has {wanted}: {names}"
        )
    return dict(counts)
