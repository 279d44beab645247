"""Traced graphs that builds share, so that a build whose graphs are known does not trace them.

A trace follows from the checkpoint's config, not from its weights. One is kept as an ONNX file
whose weights are inputs, after a digest of it; a damaged file is not taken.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.facts import image_processor_settings
from iblip.export.components.component import Component
from iblip.export.graph.tracing import Trace
from iblip.export.system.files import write_whole
from iblip.export.system.toolchain import code_digest, library_versions

logger = logging.getLogger(__name__)

KEPT = 256
"""Traces that a cache holds; those that were not used for longest make room."""

TRACED_BY = (
    "iblip.export.components",
    "iblip.export.families",
    "iblip.export.graph",
    "iblip.export.precision",
)
"""The code that a trace follows from. What else tracing imports reaches a graph by values alone
(config, contract, image settings), which are in the key themselves."""

_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".trace"
_NOTE = "iblip.trace"
_UNTOLD = ("_name_or_path", "transformers_version")
"""What a config says of itself, and no graph follows from."""


@dataclass(frozen=True)
class TraceCache:
    """Traces by what they follow from. Several processes may use one directory at once.

    A cache that cannot be read or written never fails a build.

    Args:
        directory: made when something is first kept.
    """

    directory: Path

    def __str__(self) -> str:
        return str(self.directory)

    def load(self, key: str, component: Component) -> Trace | None:
        """The trace that was kept under a key; `None` where there is none that is whole.

        Args:
            key: as from `trace_key`.
            component: of which it is.
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
        return _read(bytes(body), component)

    def keep(self, key: str, trace: Trace) -> None:
        """Adds a trace. To be called before its graph is bound to weights."""
        body = _written(trace)
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


def trace_key(component: Component, checkpoint: Checkpoint) -> str:
    """sha256, in hexadecimal, of everything that the trace of a component follows from.

    Args:
        component: one that `export.components.graphs_of_checkpoint` makes of `checkpoint`.
        checkpoint: whose config and image processor it is made from.
    """
    follows = {
        "component": component.title,
        "precision": component.precision,
        "contract": component.contract.to_json(),
        "projector": checkpoint.projector,
        "config": _told(checkpoint.config),
        "images": image_processor_settings(checkpoint),
        "code": code_digest(*TRACED_BY),
        "tools": library_versions(),
        "python": sys.version_info[:2],
    }
    return hashlib.sha256(json.dumps(follows, sort_keys=True, default=str).encode()).hexdigest()


def _told(config: Any) -> Any:
    """What a config says, JSON-ready: transformers' own, or one of this project."""
    found = config.to_dict() if hasattr(config, "to_dict") else config
    if isinstance(found, Mapping):
        return {key: _told(value) for key, value in found.items() if key not in _UNTOLD}
    return {k: _told(v) for k, v in vars(found).items()} if is_dataclass(found) else found


def _written(trace: Trace) -> bytes:
    """The graph with its weights as inputs, and beside them what else a trace is."""
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
    _settle(graph, note)
    proto.metadata_props.add(key=_NOTE, value=json.dumps(note))
    written: bytes = proto.SerializeToString(deterministic=True)
    return written


def _read(body: bytes, component: Component) -> Trace:
    model = ir.from_proto(onnx.load_model_from_string(body))
    note = json.loads(model.metadata_props.pop(_NOTE))
    _settle(model.graph, note)
    return Trace(
        component=component,
        model=model,
        tied=note["tied"],
        parameters=frozenset(note["parameters"]),
    )


def _settle(graph: ir.Graph, note: Mapping[str, Any]) -> None:
    """Makes initializers of the inputs that are weights, in the order that the trace had."""
    weights = set(note["weights"])
    known = {value.name: value for value in (*graph.initializers.values(), *graph.inputs)}
    graph.inputs[:] = [value for value in graph.inputs if value.name not in weights]
    graph.initializers.clear()
    for name in note["initializers"]:
        graph.initializers.add(known[name])
