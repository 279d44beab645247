"""Whether the sizes of two models' tensors fit, as Triton compares them."""

from __future__ import annotations

from collections.abc import Sequence


def fits(dims: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two lists of dims have the same length and are equal wherever neither is -1."""
    return len(dims) == len(others) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(dims, others, strict=True)
    )


def with_batch(dims: Sequence[int], *, batching: bool) -> list[int]:
    """The dims, preceded by the batch axis if the model batches."""
    return [-1, *dims] if batching else list(dims)
