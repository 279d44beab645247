"""Integers of a few bits, packed into words of 32."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32
"""Bits of a word."""


def unpack(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns the integers that words hold one behind the other, from the lowest bit on.

    One that does not end with its word goes on in the next, as those of 3 bits do.

    Args:
        words: int32 `[words, columns]`.
        bits: of an integer.

    Returns:
        int64 `[words · 32 / bits, columns]`, each at least 0.
    """
    import torch

    unsigned = words.to(torch.int64) & (2**WORD - 1)
    places = torch.arange(len(words) * WORD // bits) * bits
    first, shifts = places // WORD, (places % WORD)[:, None]
    after = (first + 1).clamp(max=len(words) - 1)
    # What follows lies above the bits of this word that are left; the mask takes off what is more.
    both = unsigned[first] >> shifts | unsigned[after] << (WORD - shifts)
    integers: torch.Tensor = both & (2**bits - 1)
    return integers
