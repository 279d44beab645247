"""Damages files as an attacker or a bad disk would: bytes, and JSON with its structure."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 1e308, float("nan"), 0.5)
WORDS = ("", "x", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "\ud800", "é" * 300, "F32", "model")
VALUES: tuple[Any, ...] = (*NUMBERS, *WORDS, None, True, [], {}, [[]], [0, 0], {"x": 1}, [None])

DEEP = 3000
"""Levels of nested lists that Python's own reader gives up on."""


def damaged_bytes(data: bytes, dice: random.Random) -> bytes:
    """The bytes with one to four changes: flipped, cut, doubled, replaced."""
    data = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(data) + 1)
        end = min(len(data), at + dice.choice((1, 1, 2, 4, 8, 64)))
        change = dice.randrange(6)
        if change == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            del data[at:]
        elif change == 2:
            del data[at:end]
        elif change == 3:
            data[at:at] = data[at:end] * dice.randint(1, 9)
        elif change == 4:
            data[at:end] = dice.choice((0, 1, 2**31 - 1, 2**63, 2**64 - 1)).to_bytes(8, "little")
        else:
            data[at:end] = dice.randbytes(end - at)
    return bytes(data)


def damaged_json(value: Any, dice: random.Random) -> str:
    """JSON with one to three changes of its values and keys, and sometimes of its text."""
    value = copy.deepcopy(value)
    for _ in range(dice.randint(1, 3)):
        value = _changed(value, dice)
    text = json.dumps(value)
    change = dice.randrange(12)
    if change == 0:
        return text[: dice.randrange(len(text) + 1)]
    if change == 1:  # a key or a value twice
        return text.replace(",", "," + text.strip("{}")[: dice.randrange(80)] + ",", 1)
    if change == 2:
        deep = "[" * DEEP + "]" * DEEP
        return text.replace("null", deep, 1) if "null" in text else deep
    if change == 3:
        return text.replace("1", "9" * 5000, 1)
    return text


def _changed(value: Any, dice: random.Random) -> Any:
    places = list(_places(value))
    if not places or dice.random() < 0.02:
        return copy.deepcopy(dice.choice(VALUES))
    container, key = dice.choice(places)
    change = dice.randrange(4)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container[dice.choice(WORDS)] = container.pop(key)
    elif change == 2:
        other, place = dice.choice(places)
        if place in other if isinstance(other, dict) else place < len(other):
            container[key] = copy.deepcopy(other[place])
    else:
        container[key] = copy.deepcopy(dice.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    """Every place in a value that can be changed: a container, and a key or index in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def survivors(
    count: int, seed: int, damage: Callable[[random.Random], Any], read: Callable[[Any], object]
) -> int:
    """Reads so many damaged inputs, and returns how many were read without an error.

    Errors of the project are what is wanted; any other comes through, with its input.
    """
    from iblip.export.errors import IblipError

    whole = 0
    for number in range(count):
        given = damage(random.Random(seed * 1_000_003 + number))
        try:
            read(given)
        except IblipError:
            continue
        except BaseException as error:
            shown = given if len(given) < 500 else given[:500]
            error.add_note(f"mutation {number} of seed {seed}: {shown!r}")
            raise
        whole += 1
    return whole
