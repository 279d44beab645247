"""`Component`: a graph that can be traced, before it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
        module: makes the module to trace, in float32. Its parameters carry the checkpoint's own
            names, so that a weight's name in the graph is its name in the file.
    """

    component: str
    graph: str
    precision: str
    contract: Contract
    module: Callable[[], torch.nn.Module]

    @property
    def title(self) -> str:
        """`component/graph`, for messages."""
        return f"{self.component}/{self.graph}"
