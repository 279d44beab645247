"""Merges the tensors of an original's files into those of a whole checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iblip.export.originals.names import Names, Unused, to_original, to_transformers
from iblip.export.weights.fit import is_harmless
from iblip.export.weights.weight import Concatenated, Weight, Zeros

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class File:
    """One part of an original: its tensors, under its own names.

    Attributes:
        part: as `--part` names it.
        tensors: by the file's own names.
        names: table of the file's and transformers' names.
        unused: tensors that the original does not read either.
        owns: prefixes of transformers' names that this part must have. A later part that has them
            too takes precedence.
        path: of the file, if it may hold LoRA and say its alpha.
    """

    part: str
    tensors: Mapping[str, Weight]
    names: Names
    unused: Sequence[Unused] = ()
    owns: tuple[str, ...] = ("",)
    path: Path | None = None

    def canonical(self) -> Iterator[tuple[str, str, Weight]]:
        """Yields transformers' name, the file's own name and the tensor, of all that are used.

        A tensor that the table does not know keeps its own name.
        """
        for name, tensor in self.tensors.items():
            canonical = to_transformers(name, self.names) or name
            unused = any(re.fullmatch(row.pattern, name) for row in self.unused)
            if not unused and not is_harmless(canonical):
                yield canonical, name, tensor


def join_biases(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """Replaces every pair of query and value biases with one bias of query, key and value.

    EVA's attention has no key bias; transformers' has all three in one tensor, with 0 for the key.
    """
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith("self_attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        query, value = tensors[name], tensors.get(f"{stem}v_bias")
        if value is None or value.shape != query.shape:
            continue  # reported later as missing
        whole = f"{stem}qkv.bias"
        key = Zeros(name=f"{stem}k_bias", dtype=query.dtype, shape=query.shape)
        del result[name], result[f"{stem}v_bias"]
        result[whole] = Concatenated(name=whole, parts=(query, key, value))
    return result


def expected_tensors(components: Sequence[Any]) -> tuple[Shapes, Mapping[str, str]]:
    """Returns what a checkpoint must have, from its components' modules without memory.

    Returns:
        The shape of every tensor by name; and the other name of every tied weight
        (`export.graph.tracing.tied_weights`).
    """
    from iblip.export.components.without_memory import without_memory
    from iblip.export.graph.tracing import tied_weights

    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    for component in components:
        with without_memory():
            module = component.module()
        shapes |= {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
        tied |= tied_weights(module)
    return shapes, tied


def origin_of(name: str, files: Sequence[File]) -> str:
    """Returns the part that should have transformers' `name`, and what it is called there."""
    file = next(file for file in files if name.startswith(file.owns))
    return f"{file.part}: {to_original(name, file.names)}"
