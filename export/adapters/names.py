"""From the names of an adapter's tensors to those of a checkpoint's.

peft names a tensor after the module that it changes, as that was called in the model that was
trained: behind wrappers, and by the paths of the transformers of its day.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

WRAPPERS = ("base_model.model.", "base_model.", "module.")
"""What peft and distributed training put before a model's own names."""

_ANYWHERE = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What `torch.compile`, FSDP and activation checkpointing put before the names of any module's."""

MOVED: tuple[tuple[str, str], ...] = (
    (r"model\.", ""),  # a model inside of a class that adds a head
    (r"lm_head(?=\.|$)", "language_model.lm_head"),
    (r"language_model\.(?!model\.)", "language_model.model."),
    # The model that was trained was a component alone. No two have a module of the same path.
    (r"(?=(model|encoder\.block|decoder|shared)(\.|$))", "language_model."),
    (r"(?=encoder\.layer\.)", "qformer."),
    (r"(?=encoder\.layers\.)", "vision_model."),
)
"""Beginnings of module paths as regular expressions, and what other versions of transformers have
in their place."""

_PART = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(weight|bias))?"
)

_WITHIN = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
"""What peft puts between a module and its own parameters."""


UNUSED = ".original_module."
"""In names of what peft keeps of a module beside the copy that was trained, and does not run."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a tensor of an adapter is.

    Attributes:
        module: the module's name in the model that was trained.
        kind: `lora_A`, `lora_B`, `lora_embedding_A`, `lora_embedding_B`, `lora_magnitude_vector` or
            `lora_B.bias`; or else the name of a parameter of the module that was trained whole.
        is_whole: whether it is such a parameter.
    """

    module: str
    kind: str
    is_whole: bool


def without_wrappers(name: str) -> str:
    """The name without what stands before the names of any module's own."""
    return _ANYWHERE.sub("", name)


def part_from_name(name: str) -> Part:
    """Reads the name of a tensor in an adapter's file."""
    name = without_wrappers(name)
    while wrapper := next(filter(name.startswith, WRAPPERS), None):
        name = name.removeprefix(wrapper)
    if match := _PART.fullmatch(name):
        module, kind, last = match.groups()
        return Part(module=module, kind=f"{kind}.bias" if last == "bias" else kind, is_whole=False)
    module, _, parameter = _WITHIN.sub("", name).rpartition(".")
    return Part(module=module, kind=parameter, is_whole=True)


def find_name(name: str, known: Collection[str]) -> str | None:
    """The name of the checkpoint's that `name` stands for; `None` if it has no such.

    Args:
        name: of a module or parameter in the model that was trained.
        known: names of the checkpoint's modules or parameters.
    """
    return next((candidate for candidate in _candidates(name) if candidate in known), None)


def _candidates(name: str) -> Iterator[str]:
    """Yields the name, and what it may be in other versions of transformers."""
    names = [name]
    for one in names:  # grows as it goes
        yield one
        moved = (re.sub(f"^{old}", new, one) for old, new in MOVED)
        names += [other for other in dict.fromkeys(moved) if other not in names]
