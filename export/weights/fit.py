"""Whether a checkpoint has what its graphs read, and no more. No weight is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from iblip.export.errors import CheckpointError
from iblip.export.messages import SHOWN, listed, nearest
from iblip.export.weights.binding import misfits
from iblip.export.weights.weight import Weight

HARMLESS: Mapping[str, str] = {
    r".*\.position_ids": "0, 1, 2 …, which older versions of transformers saved",
    r".*\.rotary_emb\.inv_freq": "follows from the config; older versions of transformers saved it",
    r".*\.attn\.(masked_)?bias": "a causal mask, which older versions of transformers saved",
    r".*\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
        "in T5's first files; its attention to the picture and the prompt has no such bias"
    ),
}
"""Patterns of tensors that no model reads, and why they may be there."""


def check_fit(
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
    parameters: Collection[str],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
) -> None:
    """Compares a checkpoint with everything that is made of it.

    Args:
        wanted: shape and dtype of every weight of every graph, by name.
        parameters: of the modules that were traced: also those whose part of the work is never
            looked at, and which no graph has for that reason.
        tensors: the checkpoint's, by name.
        tied: weight to the one that the config ties it to: a checkpoint may have both.

    Raises:
        CheckpointError: listing what is missing, of another shape, or read by no graph, with the
            nearest that is there or is wanted.
    """
    faults = misfits(wanted, tensors, tied)
    missing = [name for name in wanted if name not in tensors and tied.get(name) not in tensors]
    known = {*wanted, *parameters, *tied, *tied.values()}
    extra = [name for name in tensors if name not in known and not _harmless(name)]
    faults += [_ignored(name, missing or wanted) for name in extra[:SHOWN]]
    count = len(faults) + len(extra[SHOWN:])
    if count:
        why = (
            "\nA tensor that no graph reads would be ignored, and answers would change: is this the"
            " config of another model?"
        )
        raise CheckpointError(
            "the checkpoint does not fit its own config:\n  "
            f"{listed(faults, count)}{why if extra else ''}"
        )


def _harmless(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in HARMLESS)


def _ignored(name: str, wanted: Collection[str]) -> str:
    return f"{name} is read by no graph{nearest(name, wanted, 'nearest that is')}"
