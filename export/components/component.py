"""`Component`: a graph before it is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from iblip.export.artifact.contract import Contract


@dataclass(frozen=True, kw_only=True)
class Component:
    """One graph to trace.

    Attributes:
        component: `vision_encoder`, `qformer` or `language_model`.
        graph: its name within the component (`model`, `embed_tokens`, `encoder`, `decoder`).
        precision: a key of `export.precision.DTYPES`.
        contract: inputs and outputs. Inputs whose name contains `key_values` reach the module's
            `forward` as one list, after the others.
        kind: constructs the module to trace, in float32. Its parameters carry the checkpoint's own
            names, so that a weight's name in the graph is its name in the file.
        settings: what it is constructed from: configs, classes, functions of modules, values of
            JSON. With the code, the contract and the precision, a trace depends on these alone.
    """

    component: str
    graph: str
    precision: str
    contract: Contract
    kind: Callable[..., torch.nn.Module]
    settings: tuple[Any, ...] = ()

    @property
    def title(self) -> str:
        """Name of the graph in messages: `component/graph`."""
        return f"{self.component}/{self.graph}"

    def module(self) -> torch.nn.Module:
        """Constructs the module to trace."""
        return self.kind(*self.settings)
