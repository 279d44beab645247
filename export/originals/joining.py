"""Tensors of an original's files to a whole checkpoint's, and what does not fit, by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.messages import SHOWN, listed, nearest
from iblip.export.originals.names import Names, Unused, original, renamed
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
            if not any(re.fullmatch(row.pattern, name) for row in self.unused):
                yield renamed(name, self.names) or name, name, tensor


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
    import torch
    from transformers.initialization import no_init_weights

    from iblip.export.graph.tracing import tied_weights

    shapes: dict[str, tuple[int, ...]] = {}
    tied: dict[str, str] = {}
    for component in components:
        with torch.device("meta"), no_init_weights():
            module = component.module()
        shapes |= {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}
        tied |= tied_weights(module)
    return shapes, tied


def origin_of(name: str, files: Sequence[File]) -> str:
    """Where transformers' `name` should be: the part, and what it is called there."""
    file = next(file for file in files if name.startswith(file.owns))
    return f"{file.part}: {original(name, file.names)}"


def check_fit(
    tensors: Mapping[str, Weight],
    origins: Mapping[str, str],
    shapes: Shapes,
    tied: Mapping[str, str],
    files: Sequence[File],
) -> None:
    """Compares what the files hold with what the model needs.

    Args:
        tensors: by transformers' names.
        origins: transformers' name to part and name in it, of every tensor.
        shapes: what is needed, by transformers' name.
        tied: under which other name a weight may be.
        files: to tell a missing tensor by the name that it has in its part.

    Raises:
        CheckpointError: listing what is missing, of another shape, or not known, with the nearest
            that is there or is expected.
    """
    aliases = {*tied, *tied.values()}
    extra = [name for name in tensors if name not in shapes and name not in aliases]
    missing = [name for name in shapes if name not in tensors and tied.get(name) not in tensors]
    misshaped = [name for name in shapes if name in tensors and tensors[name].shape != shapes[name]]
    wanted = [origin_of(name, files) for name in missing or shapes]
    lines = (
        *(
            _missing(origin_of(name, files), [origins[n] for n in extra])
            for name in missing[:SHOWN]
        ),
        *(_misshaped(origins[name], tensors[name].shape, shapes[name]) for name in misshaped),
        *(_extra(origins[name], wanted) for name in extra[:SHOWN]),
    )
    count = len(missing) + len(misshaped) + len(extra)
    if count:
        raise CheckpointError(
            f"the files do not make this model:\n  {listed(lines, count)}\nA model of another size?"
            " --part config=FILE gives its config in transformers' form."
        )


def _missing(name: str, there: Sequence[str]) -> str:
    return f"{name} is missing{nearest(name, there)}"


def _misshaped(name: str, found: Sequence[int], wanted: Sequence[int]) -> str:
    return f"{name} has shape {list(found)}, wanted {list(wanted)}"


def _extra(name: str, wanted: Sequence[str]) -> str:
    return f"{name} is not known{nearest(name, wanted)}"
