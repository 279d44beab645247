"""The prefix cache: prompts that have been read into rows which no sequence needs at present.

A slot whose sequence has ended stays here until its row is needed, so that a later prompt that
begins alike is read from where the two differ. This module knows nothing of what a row holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from iblip.engines.language_model.onnx.slots import Slot


class IdleSlots:
    """Slots of ended sequences. They hold rows of the model's caches, and no memory of their own.

    Iterating yields the one that has not been used for longest first.
    """

    def __init__(self) -> None:
        self._slots: list[Slot] = []

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots)

    def add(self, slot: Slot) -> None:
        """Adds a slot, the last to go. Those that differ from it in their shorter part go now."""
        content = slot.content
        self._slots = [
            one for one in self._slots if 2 * count_equal(one.content, content) < len(one.content)
        ]
        self._slots.append(slot)

    def touch(self, slot: Slot) -> None:
        """Makes a slot the last to go, if it is here."""
        if slot in self._slots:
            self._slots.remove(slot)
            self._slots.append(slot)

    def take(self, row: int) -> Slot | None:
        """Removes and returns the slot in this row, if there is one."""
        for slot in self._slots:
            if slot.row == row:
                self._slots.remove(slot)
                return slot
        return None

    def find_room(self, rows: Iterable[int], needed: Slot | None) -> int | None:
        """One of these rows that nothing is in, or that of the slot that goes first.

        Args:
            rows: those that no sequence has.
            needed: a slot that may not go.
        """
        taken = {slot.row for slot in self._slots}
        for row in rows:
            if row not in taken:
                return row
        for slot in self._slots:
            if slot is not needed:
                self._slots.remove(slot)
                return slot.row
        return None


def count_equal(one: Sequence[int | bytes], other: Sequence[int | bytes]) -> int:
    """The number of leading elements that two sequences have in common."""
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other))
