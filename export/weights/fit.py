"""Checks that a checkpoint has what its graphs read, and no more. No weight is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

from iblip.export.artifact.contract import DTYPES
from iblip.export.errors import CheckpointError
from iblip.export.messages import SHOWN, listed, nearest
from iblip.export.weights.weight import Weight

HARMLESS: Mapping[str, str] = {
    r".*\.position_ids": "0, 1, 2 …, which older versions of transformers saved",
    r".*\.rotary_emb\.inv_freq": "follows from the config; older versions of transformers saved it",
    r".*\.attn\.(masked_)?bias": "a causal mask, which older versions of transformers saved",
    r".*\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
        "in T5's first files; its attention to the image and the prompt has no such bias"
    ),
}
"""Patterns of transformers' names of tensors that no model reads, and why they may be there."""

IGNORED = (
    "A tensor that no graph reads would be ignored, and answers would change: is this the config of"
    " another model?"
)


def is_harmless(name: str) -> bool:
    """Whether `HARMLESS` has a pattern that matches transformers' name of a tensor."""
    return any(re.fullmatch(pattern, name) for pattern in HARMLESS)


def check_fit(
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Weight],
    tied: Mapping[str, str],
    *,
    known: Collection[str] = (),
    title: Callable[[str], str] = str,
    summary: str = "the checkpoint does not fit its own config",
    remedy: str = "",
) -> None:
    """Compares the tensors of a checkpoint with those that its graphs, or modules, need.

    Args:
        shapes: shape of every weight that is needed, by name.
        tensors: the checkpoint's, by name.
        tied: weight to the one that the config ties it to: a checkpoint may have either or both.
        known: names of tensors that are not needed but may be there, such as weights of a traced
            module that do not affect its outputs.
        title: what the message calls a tensor, needed or found, given its name.
        summary, remedy: first and last line of the message.

    Raises:
        CheckpointError: listing every tensor that is missing, of another shape, of a dtype that no
            graph takes, or read by no graph, with the nearest name that is there or is needed.
    """
    allowed = {*shapes, *known, *tied, *tied.values()}
    missing = [name for name in shapes if name not in tensors and tied.get(name) not in tensors]
    extra = [name for name in tensors if name not in allowed and not is_harmless(name)]
    unfit = [f"{title(name)} {fault}" for name, fault in _unfit(shapes, tensors, tied)]
    spare = [title(name) for name in tensors if name not in shapes] or list(map(title, tensors))
    needed = [title(name) for name in missing or shapes]
    lines = (
        *(f"{name} is missing{nearest(name, spare)}" for name in map(title, missing[:SHOWN])),
        *unfit,
        *(
            f"{name} is read by no graph{nearest(name, needed, 'nearest that is')}"
            for name in map(title, extra[:SHOWN])
        ),
    )
    count = len(missing) + len(unfit) + len(extra)
    if count:
        remedies = [IGNORED] if extra else []
        ends = "\n".join(["", *remedies, *([remedy] if remedy else [])])
        raise CheckpointError(f"{summary}:\n  {listed(lines, count)}{ends}")


def _unfit(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Weight], tied: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Weights that are there and cannot be used, and why."""
    for name, shape in shapes.items():
        source = tensors.get(name) or tensors.get(tied.get(name, ""))
        if source is not None and source.shape != shape:
            yield name, f"has shape {list(source.shape)}, expected {list(shape)}"
        elif source is not None and source.dtype not in DTYPES:
            yield name, f"has dtype {source.dtype}; supported: {', '.join(DTYPES)}"
