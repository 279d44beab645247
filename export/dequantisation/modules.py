"""Modules whose weight is several tensors, and the settings that come with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from iblip.export.errors import CheckpointError
from iblip.export.weights.weight import Weight


def modules_of(
    method: str, tensors: Mapping[str, Weight], needed: Collection[str], others: Collection[str]
) -> tuple[dict[str, dict[str, Weight]], dict[str, Weight]]:
    """Splits the tensors of a checkpoint into those of quantised modules, and the rest.

    Args:
        method: for messages.
        tensors: by name.
        needed: last words of the names of the tensors that every such module has.
        others: of those that it may have.

    Returns:
        By module, its tensors by the last word of their names; and all other tensors.

    Raises:
        CheckpointError: a module lacks one that is needed, or has its weight as floats, too.
    """
    modules: dict[str, dict[str, Weight]] = {}
    rest: dict[str, Weight] = {}
    for name, tensor in tensors.items():
        module, _, word = name.rpartition(".")
        if word in needed or word in others:
            modules.setdefault(module, {})[word] = tensor
        else:
            rest[name] = tensor
    for module, parts in modules.items():
        if missing := sorted(set(needed) - parts.keys()):
            raise CheckpointError(
                f"{module}.{missing[0]} is missing, which {method} has beside"
                f" {', '.join(sorted(parts))}. Was the checkpoint saved and downloaded whole?"
            )
        if f"{module}.weight" in rest:
            raise CheckpointError(
                f"{module}.weight lies beside the {', '.join(sorted(parts))} of {method}: which of"
                " the two the model is, the file does not say. Save it with one of them."
            )
    return modules, rest


def settings_text(config: Mapping[str, Any], *keys: str) -> str | None:
    """Returns the first of the settings that is given, in lower case."""
    given = next((config[key] for key in keys if config.get(key) is not None), None)
    return None if given is None else str(given).lower()
