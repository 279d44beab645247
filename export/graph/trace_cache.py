"""A cache of traced graphs that builds share, so that known graphs are not traced again.

A trace depends on the checkpoint's config, not on its weights. It is kept as an ONNX file whose
weights are inputs, behind a digest; a damaged file is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from iblip.export.components.component import Component
from iblip.export.graph.tracing import Trace
from iblip.export.precision import BETWEEN, DTYPES, MATRICES
from iblip.export.system.files import write_whole
from iblip.export.system.toolchain import code_digest, library_versions

logger = logging.getLogger(__name__)

KEPT = 256
"""Number of traces that a cache holds; the least recently used ones make room."""

TRACED_BY = (
    "iblip.export.checkpoint.cache_shape",
    "iblip.export.components",
    "iblip.export.families",
    "iblip.export.graph",
    "iblip.export.precision",
)
"""The code that a trace depends on. Other modules that tracing imports affect a graph only through
values (config, contract, image settings), which are part of the key themselves."""

_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".trace"
_NOTE = "iblip.trace"
_IRRELEVANT = ("_name_or_path", "model_type", "transformers_version")
"""Fields of a config that no graph depends on; classes that read it are in the key themselves."""


@dataclass(frozen=True)
class TraceCache:
    """Traces in a directory, by what they depend on. Several processes may share it.

    A cache that cannot be read or written never fails a build.

    Args:
        directory: created when a trace is first kept.
    """

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)

    def load(self, key: str, component: Component) -> Trace | None:
        """Returns the trace that was kept under a key; `None` if there is none, or it is damaged.

        Args:
            key: as from `trace_key`.
            component: that was traced.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        body = memoryview(content)[_DIGEST:]
        if hashlib.sha256(body).digest() != content[:_DIGEST]:
            logger.warning("%s is damaged; %s is traced anew", path, component.title)
            return None
        return _parse(bytes(body), component)

    def keep(self, key: str, trace: Trace) -> None:
        """Adds a trace. It must be called before the graph is bound to weights."""
        body = _serialise(trace)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(key), hashlib.sha256(body).digest() + body)
            self._make_room()
        except OSError as error:
            logger.info("the trace of %s is not kept: %s", trace.component.title, error)

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"

    def _make_room(self) -> None:
        kept = sorted(
            self.directory.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        for path in kept[KEPT:]:
            path.unlink(missing_ok=True)


def trace_key(component: Component) -> str:
    """Returns the sha256, in hexadecimal, of all that the trace of a component depends on."""
    inputs = {
        "component": component.title,
        "dtypes": [table.get(component.precision) for table in (DTYPES, BETWEEN, MATRICES)],
        "contract": component.contract.to_json(),
        "kind": _to_json(component.kind),
        "settings": _to_json(component.settings),
        "code": code_digest(*TRACED_BY),
        "tools": library_versions(),
        "python": sys.version_info[:2],
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _to_json(value: Any) -> Any:
    """Returns a setting, JSON-ready: the relevant fields of a config, the name of a class."""
    if hasattr(value, "to_dict"):  # a config of transformers or of this project
        return _to_json(value.to_dict())
    if isinstance(value, Mapping):
        return {str(k): _to_json(v) for k, v in value.items() if k not in _IRRELEVANT}
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    return f"{value.__module__}.{value.__qualname__}" if callable(value) else value


def _serialise(trace: Trace) -> bytes:
    """Returns the graph with its weights as inputs, and the trace's other fields as metadata."""
    graph = trace.model.graph
    note = {
        "initializers": list(graph.initializers),
        "weights": list(trace.weights),
        "tied": dict(trace.tied),
        "parameters": sorted(trace.parameters),
    }
    weights = [graph.initializers.pop(name) for name in note["weights"]]
    graph.inputs.extend(weights)
    proto = ir.to_proto(trace.model)
    _restore_initializers(graph, note)
    proto.metadata_props.add(key=_NOTE, value=json.dumps(note))
    body: bytes = proto.SerializeToString(deterministic=True)
    return body


def _parse(body: bytes, component: Component) -> Trace:
    model = ir.from_proto(onnx.load_model_from_string(body))
    note = json.loads(model.metadata_props.pop(_NOTE))
    _restore_initializers(model.graph, note)
    return Trace(
        component=component,
        model=model,
        tied=note["tied"],
        parameters=frozenset(note["parameters"]),
    )


def _restore_initializers(graph: ir.Graph, note: Mapping[str, Any]) -> None:
    """Turns the inputs that are weights into initializers again, in the trace's order."""
    weights = set(note["weights"])
    known = {value.name: value for value in (*graph.initializers.values(), *graph.inputs)}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in weights]
    graph.initializers.clear()
    for name in note["initializers"]:
        graph.initializers.add(known[name])
