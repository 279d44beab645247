"""Reads a plan's layers, as they were fused and chosen, from TensorRT's engine inspector."""

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
"""A dtype to how `Format/Datatype` in the inspector's JSON spells it: a word (`Half`), or a word in
a phrase (`Row major linear FP16 format`). Source: NVIDIA's documentation, "Engine Inspector"."""


@no_collection()
def engine_information(path: Path, flags: Collection[str], library: Library) -> Any:
    """The inspector's JSON of a whole engine: `Layers`, `Bindings` or `I/O Tensors`.

    Args:
        path: of the plan.
        flags: the flags that it was built with, keys of `engines.tensorrt.options.FLAGS`.
        library: of the plan's kind, on a machine with its GPU.

    Raises:
        EngineError: the plan is missing or does not load here, or its information is not JSON.
    """
    plan = open_plan(path, flags, library)
    inspector = plan.engine.create_engine_inspector()
    text = inspector.get_engine_information(library.module.LayerInformationFormat.JSON)
    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(
            f"{library.kind}'s inspector returned no JSON for {path}: {text[:200]!r}"
        ) from error


def layers_of_engine(information: Any) -> list[tuple[str, frozenset[str]]]:
    """Name of every layer of an engine, with the dtypes of its inputs and outputs.

    Args:
        information: from `engine_information`, of an engine built with detailed verbosity.
    """
    return [
        (str(layer.get("Name", "")), frozenset(_find_dtypes(layer)))
        for layer in information.get("Layers", ())
        if isinstance(layer, dict)  # a layer without details is only a name
    ]


def _find_dtypes(layer: Mapping[str, Any]) -> list[str]:
    tensors = (*layer.get("Inputs", ()), *layer.get("Outputs", ()))
    formats = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in tensors)
    return [dtype for dtype, words in WORDS.items() if re.search(rf"\b({words})\b", formats, re.I)]


def check_engine(information: Any, graph: OnnxGraph) -> dict[str, int]:
    """The number of layers of a built engine by dtype.

    The rules of `readback` do not apply to fused layers; but some must still compute in the dtype
    that was asked for.

    Raises:
        EngineError: no layer does; the message names some layers.
    """
    layers = layers_of_engine(information)
    counts = Counter(dtype for _, dtypes in layers for dtype in dtypes)
    rule = PRECISIONS[graph.precision]
    dtype = rule.quantised or rule.matrices
    if counts and not counts[dtype]:
        names = ", ".join(name for name, dtypes in layers[:SHOWN] if dtypes)
        raise EngineError(
            f"the engine of {graph.path} was asked for in {graph.precision}, but none of its "
            f"{len(layers)} layers has {dtype}: {names}"
        )
    return dict(counts)
