"""The rotary embedding that a config asks for: fixed angles, or refused.

A graph computes the angles of a position from the position alone. Requests share its runs, so
angles that change with the longest sequence of a run would let them change each other's answers.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from iblip.export.errors import CheckpointError
from iblip.export.messages import shown

FIXED = ("default", "linear", "llama3", "proportional", "yarn")
"""Values of transformers' `rope_type` whose angles depend on the position alone."""

DYNAMIC = "dynamic"
"""Changes its angles only beyond `max_position_embeddings`, where no build's sequence ends. Up to
there they are those of `default` (transformers, `modeling_rope_utils.py`,
`_compute_dynamic_ntk_parameters` and `dynamic_frequency_update`)."""

PLAIN = ("rope_theta", "partial_rotary_factor")
"""Fields of `rope_parameters` that those of `default` have."""


def with_fixed_angles(
    text_config: Any, rotary: type[torch.nn.Module] = LlamaRotaryEmbedding
) -> Any:
    """Returns `text_config`, or one with the same angles, whose angles are fixed.

    Args:
        text_config: the language model's, with `rope_parameters`.
        rotary: transformers' module that computes the angles from it, such as LLaMA's, which is
            also Mistral's and Qwen2's.

    Raises:
        CheckpointError: its `rope_parameters` are of an unknown kind, incomplete, or of one whose
            angles change with the length of a sequence.
    """
    given = text_config.rope_parameters
    word = given.get("rope_type") if isinstance(given, dict) else None
    if word == DYNAMIC:
        text_config = deepcopy(text_config)
        text_config.rope_parameters = {
            name: value for name, value in given.items() if name in PLAIN
        } | {"rope_type": "default"}
    elif word not in FIXED:
        raise CheckpointError(
            f"the language model's config has rope_type {shown(word)}; supported:"
            f" {', '.join((*FIXED, DYNAMIC))}. Of other kinds the angles are not known, or change"
            " with the length of a sequence (longrope), and sequences of several lengths share a"
            " run here."
        )
    _check(text_config, given, rotary)
    return text_config


def _check(text_config: Any, given: Any, rotary: type[torch.nn.Module]) -> None:
    """Raises CheckpointError if transformers cannot compute the angles."""
    try:
        frequencies: Any = rotary(text_config).inv_freq
    except Exception as error:
        raise _unusable(given, f"{type(error).__name__}: {error}") from error
    if not torch.isfinite(frequencies).all():
        raise _unusable(given, "its frequencies are not finite")


def _unusable(given: Any, reason: str) -> CheckpointError:
    return CheckpointError(
        f"the language model's config has rope_parameters (or rope_scaling) {shown(given)}, which"
        f" transformers cannot use ({reason}). Compare it with the config of the model that the"
        " weights were trained as."
    )
