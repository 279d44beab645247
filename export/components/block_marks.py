"""Marks where the blocks of a stack end in a traced graph.

A stack is a `ModuleList` of equal layers of a transformer: a ViT's, a LLaMA's. A block is one of
them. During tracing a mark follows each block: an operator of our own with the block's result as
its only input. The marks are removed later, and the results keep their names: that of the block
`vision_model.encoder.layers.7` is `vision_model.encoder.layers.7.output`, which is the residual
stream after the block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch.onnx.ops import symbolic

DOMAIN = "iblip.trace"
MARK = "Block"
OUTPUT = ".output"
"""Suffix of the name of a block's result, after the block's path."""
STREAM_SCALE = "iblip.stream_scale"
"""Key of a graph's metadata: what its blocks' results are multiplied by, if anything. It is the
attribute `stream_scale` of the traced module."""


def stacks(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Yields every stack of `module` by its path, except for those inside a block of another."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if isinstance(child, torch.nn.ModuleList):
            yield below, child
        else:
            yield from stacks(child, below)


def mark_blocks(module: torch.nn.Module) -> None:
    """Has every block of every stack of `module` mark its result when it is called."""
    for path, stack in stacks(module):
        for index, block in enumerate(stack):
            block.register_forward_hook(partial(_mark_output, f"{path}.{index}"))


def mark(path: str, result: torch.Tensor, *, named: bool = True) -> torch.Tensor:
    """Returns `result` behind a mark with the path of the block that computes it.

    With `named`, it is the block's result and gets its name.
    """
    marked: torch.Tensor = symbolic(
        f"{DOMAIN}::{MARK}",
        (result,),
        {"path": path, "named": int(named)},
        dtype=result.dtype,
        shape=list(result.shape),
        version=1,
    )
    return marked


def _mark_output(path: str, _module: torch.nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):  # the residual stream, and what else transformers hands on
        return (mark(path, output[0]), *output[1:])
    return mark(path, output)


def take_out_marks(model: ir.Model) -> None:
    """Removes the marks of a traced graph, and names what stood before each of them."""
    for node in list(model.graph):
        if node.domain == DOMAIN:
            (result,), (marked,) = node.inputs, node.outputs
            assert result is not None
            if marked.is_graph_output():
                result.name = marked.name
            elif node.attributes["named"].as_int():
                result.name = node.attributes["path"].as_string() + OUTPUT
            ir.convenience.replace_all_uses_with(marked, result, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
