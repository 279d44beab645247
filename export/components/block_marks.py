"""Where the blocks of a stack end in a traced graph, so that they can be told apart there.

A stack is a `ModuleList` of equal layers: a ViT's, a LLaMA's. While it is traced, a mark stands
behind each of its blocks: an operator of our own with the block's result as its one input. The
marks come out of the graph again, and the results keep their names: `vision_model.encoder.layers.7`
gives `vision_model.encoder.layers.7.output`, which is the residual stream after that block.
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
"""What follows a block's path in the name of its result."""


def stacks(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Every stack of `module` by its path, but for lists that lie within a block of another."""
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
            block.register_forward_hook(partial(_marked, f"{path}.{index}"))


def mark(path: str, result: torch.Tensor, *, named: bool = True) -> torch.Tensor:
    """`result`, in the graph behind a mark that says where it was made.

    `named`: it is the block's result, and takes its name.
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


def _marked(path: str, _module: torch.nn.Module, _args: Any, output: Any) -> Any:
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
