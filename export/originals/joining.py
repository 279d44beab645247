"""Tensors of an original's files to a whole checkpoint's, and what does not fit, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.originals.names import Names, Unused, original, renamed
from iblip.export.weights.fit import is_harmless
from iblip.export.weights.weight import Concatenated, Weight, Zeros

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class File:
    """One part of an original: its tensors, as it calls them.

    Attributes:
        part: as `--part` names it.
        tensors: by the file's own names.
        names: to transformers' names.
        unused: what the original does not read either.
        owns: how names of transformers begin that this part must have; another may have them too,
            and then counts.
    """

    part: str
    tensors: Mapping[str, Weight]
    names: Names
    unused: Sequence[Unused] = ()
    owns: tuple[str, ...] = ("",)

    def canonical(self) -> Iterator[tuple[str, str, Weight]]:
        """Transformers' name, the file's own, and the tensor, of all that are used.

        A tensor of which the table knows nothing keeps its own name.
        """
        for name, tensor in self.tensors.items():
            canonical = renamed(name, self.names) or name
            unused = any(re.fullmatch(row.pattern, name) for row in self.unused)
            if not unused and not is_harmless(canonical):
                yield canonical, name, tensor


def check_merged(file: File) -> None:
    """Raises CheckpointError where the part holds LoRA's matrices beside what they change."""
    found = [name for name in file.tensors if ".lora_" in name or name.startswith("lora_")]
    if found:
        raise CheckpointError(
            f"--part {file.part} holds LoRA adapters that are not merged ({found[0]} and"
            f" {len(found) - 1} more). Merge them into the language model first"
            " (peft: `model.merge_and_unload()`, then `save_pretrained`), give that directory as"
            " --part language_model, and leave the adapters out of every part."
        )


def joined(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """The same with every pair of query and value biases as one of query, key and value.

    EVA's attention has no key bias, transformers' has all three in one tensor, key's all 0.
    """
    result = dict(tensors)
    for name in [name for name in tensors if name.endswith("self_attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        query, value = tensors[name], tensors.get(f"{stem}v_bias")
        if value is None or value.shape != query.shape:
            continue  # told as what is missing
        whole = f"{stem}qkv.bias"
        key = Zeros(name=f"{stem}k_bias", dtype=query.dtype, shape=query.shape)
        del result[name], result[f"{stem}v_bias"]
        result[whole] = Concatenated(name=whole, parts=(query, key, value))
    return result


def expected(components: Sequence[Any]) -> tuple[Shapes, Mapping[str, str]]:
    """What a checkpoint must have, from its components' own modules, without memory.

    Returns:
        Name to shape; and where a tied weight may be found instead
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
    """Where transformers' `name` should be: the part, and what it is called there."""
    file = next(file for file in files if name.startswith(file.owns))
    return f"{file.part}: {original(name, file.names)}"
