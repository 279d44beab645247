"""When the sizes of one model's tensor fit those of another's, as Triton compares them."""

from __future__ import annotations

from collections.abc import Sequence


def fits(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two lists of dims are of one length and equal wherever neither is -1."""
    return len(one) == len(other) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True)
    )


def full(dims: Sequence[int], *, batching: bool) -> list[int]:
    """Dims with the axis of the batch, where there is one."""
    return [-1, *dims] if batching else list(dims)
