"""Questions about a scene, each with exactly one right answer.

A wording is a pair of templates, so the same prompt always asks for the same form of answer: a
word ("What colour is the 3?" → "red") or a sentence ("Tell me the colour of the 3." → "The 3 is
red."). A kind is asked only of a scene where its answer is certain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .scenes import COLOURS, PLACES, Digit, Scene

Slots = Mapping[str, str]
NUMBERS = ("zero", "one", "two", "three")


@dataclass(frozen=True)
class Question:
    """A prompt and its one right answer.

    Training uses two more facts for auxiliary heads. `short` is the answer reduced to its key word
    (`"red"`), or empty for descriptions. `about` is the place of the digit in question, empty
    where there is no such digit, and None where it is not about one.
    """

    kind: str
    prompt: str
    answer: str
    short: str
    about: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of question: its wordings, and how its slots are filled from a scene.

    Attributes:
        wordings: pairs of prompt and answer templates.
        slots: fills the templates, or returns None where the scene does not allow the question.
        counts: how many digits a scene should have for this kind.
    """

    wordings: tuple[tuple[str, str], ...]
    slots: Callable[[Scene, np.random.Generator], Slots | None]
    counts: tuple[int, ...] = (1, 2, 3)


def phrase(digit: Digit) -> str:
    """`a red 3`."""
    return f"a {digit.colour} {digit.value}"


def full_phrase(digit: Digit) -> str:
    """`a large red 3 in the top left`."""
    return f"a {digit.size} {digit.colour} {digit.value} in the {PLACES[digit.place]}"


def listed(parts: list[str]) -> str:
    """`a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _any_digit(scene: Scene, rng: np.random.Generator) -> Digit:
    return scene.digits[rng.integers(len(scene.digits))]


def _facts(digit: Digit) -> dict[str, str]:
    return {
        "digit": str(digit.value),
        "colour": digit.colour,
        "place": PLACES[digit.place],
        "size": digit.size,
    }


def _about(key: str) -> Callable[[Scene, np.random.Generator], Slots]:
    """Slots about one digit, whose `key` is the short answer."""

    def slots(scene: Scene, rng: np.random.Generator) -> Slots:
        facts = _facts(_any_digit(scene, rng))
        return {**facts, "short": facts[key], "about": facts["place"]}

    return slots


def _by_colour(scene: Scene, rng: np.random.Generator) -> Slots | None:
    colours = [digit.colour for digit in scene.digits]
    unique = [digit for digit in scene.digits if colours.count(digit.colour) == 1]
    if not unique:
        return None
    facts = _facts(unique[rng.integers(len(unique))])
    return {**facts, "short": facts["digit"], "about": facts["place"]}


def _count(scene: Scene, rng: np.random.Generator) -> Slots:
    number = NUMBERS[len(scene.digits)]
    noun = "digit" if len(scene.digits) == 1 else "digits"
    verb = "is" if len(scene.digits) == 1 else "are"
    return {"number": number, "noun": noun, "verb": verb, "short": number}


def _yes_no(present: bool, places: list[str], **slots: str) -> Slots:
    word = "yes" if present else "no"
    return {**slots, "yes": word, "Yes": word.capitalize(), "is": "is" if present else "is no",
            "short": word, "about": places[0] if places else ""}  # fmt: skip


def _exists(scene: Scene, rng: np.random.Generator) -> Slots:
    shown = [digit.value for digit in scene.digits]
    absent = [value for value in range(10) if value not in shown]
    present = bool(rng.integers(2))
    value = int(rng.choice(shown if present else absent))
    article = "an" if value == 8 else "a"
    places = [PLACES[digit.place] for digit in scene.digits if digit.value == value]
    there = article if present else "no"
    return _yes_no(present, places, digit=str(value), a=article, there=there)


def _exists_colour(scene: Scene, rng: np.random.Generator) -> Slots:
    shown = sorted({digit.colour for digit in scene.digits})
    absent = [colour for colour in COLOURS if colour not in shown]
    present = bool(rng.integers(2))
    colour = str(rng.choice(shown if present else absent))
    places = [PLACES[digit.place] for digit in scene.digits if digit.colour == colour]
    return _yes_no(present, places, colour=colour, there="a" if present else "no")


def _larger(scene: Scene, rng: np.random.Generator) -> Slots | None:
    if len(scene.digits) != 2 or scene.digits[0].size == scene.digits[1].size:
        return None
    large, small = sorted(scene.digits, key=lambda digit: digit.size)  # "large" sorts first
    facts = _facts(large)
    return {**facts, "other": str(small.value), "short": facts["digit"], "about": facts["place"]}


def _background(scene: Scene, rng: np.random.Generator) -> Slots:
    return {"tone": scene.tone, "short": scene.tone}


def _description(scene: Scene, rng: np.random.Generator) -> Slots:
    number = NUMBERS[len(scene.digits)]
    noun = "digit" if len(scene.digits) == 1 else "digits"
    brief = listed([phrase(digit) for digit in scene.digits])
    return {
        "brief": brief,
        "Brief": brief[0].upper() + brief[1:],
        "full": listed([full_phrase(digit) for digit in scene.digits]),
        "number": number,
        "noun": noun,
        "tone": scene.tone,
        "short": "",
    }


KINDS: Mapping[str, Kind] = {
    "digit": Kind(
        (
            ("Which digit is this?", "{digit}"),
            ("What digit is in the image?", "{digit}"),
            ("What number do you see?", "{digit}"),
            ("Name the digit in a sentence.", "The digit is {digit}."),
        ),
        _about("digit"),
        counts=(1,),
    ),
    "digit_at": Kind(
        (
            ("What digit is in the {place}?", "{digit}"),
            ("Which number is in the {place} of the image?", "{digit}"),
            ("Tell me the digit in the {place}.", "The digit in the {place} is {digit}."),
        ),
        _about("digit"),
    ),
    "digit_of_colour": Kind(
        (
            ("Which digit is {colour}?", "{digit}"),
            ("What is the {colour} digit?", "{digit}"),
            ("Tell me which digit is {colour}.", "The {colour} digit is {digit}."),
        ),
        _by_colour,
    ),
    "colour": Kind(
        (
            ("What colour is the {digit}?", "{colour}"),
            ("What color is the {digit}?", "{colour}"),
            ("Which colour does the {digit} have?", "{colour}"),
            ("Tell me the colour of the {digit}.", "The {digit} is {colour}."),
        ),
        _about("colour"),
    ),
    "place": Kind(
        (
            ("Where is the {digit}?", "{place}"),
            ("Where in the image is the {digit}?", "{place}"),
            ("Tell me where the {digit} is.", "The {digit} is in the {place}."),
        ),
        _about("place"),
    ),
    "size": Kind(
        (
            ("Is the {digit} small or large?", "{size}"),
            ("What size is the {digit}?", "{size}"),
            ("Tell me the size of the {digit}.", "The {digit} is {size}."),
        ),
        _about("size"),
    ),
    "count": Kind(
        (
            ("How many digits are there?", "{number}"),
            ("How many digits are in the image?", "{number}"),
            ("Count the digits.", "There {verb} {number} {noun}."),
        ),
        _count,
    ),
    "exists": Kind(
        (
            ("Is there {a} {digit}?", "{yes}"),
            ("Is there {a} {digit} in the image?", "{yes}"),
            ("Can you see {a} {digit}?", "{Yes}, there is {there} {digit}."),
        ),
        _exists,
    ),
    "exists_colour": Kind(
        (
            ("Is there a {colour} digit?", "{yes}"),
            ("Is any digit {colour}?", "{yes}"),
            ("Can you see a {colour} digit?", "{Yes}, there is {there} {colour} digit."),
        ),
        _exists_colour,
    ),
    "larger": Kind(
        (
            ("Which digit is larger?", "{digit}"),
            ("Which digit is drawn larger?", "{digit}"),
            ("Compare the sizes of the digits.", "The {digit} is larger than the {other}."),
        ),
        _larger,
        counts=(2,),
    ),
    "background": Kind(
        (
            ("Is the background dark or light?", "{tone}"),
            ("What is the background like?", "{tone}"),
            ("Describe the background.", "The background is {tone}."),
        ),
        _background,
    ),
    "describe": Kind(
        (
            ("Describe the image.", "{Brief}."),
            ("What is in the image?", "{brief}"),
            ("Write a short description of the image.", "The image shows {brief}."),
        ),
        _description,
    ),
    "detail": Kind(
        (
            ("Describe the image in detail.", "The image shows {number} {noun}: {full}."),
            (
                "Write a detailed description of the image.",
                "On a {tone} background there is {full}.",
            ),
        ),
        _description,
    ),
}


CAPTION = "caption"
"""A description asked for with no words at all, as BLIP-2 is; not a kind of the held-out set."""

_CAPTION = Kind((("", "{brief}"),), _description)


def ask(kind: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask one question of `kind` (of `KINDS`, or `CAPTION`).

    Returns:
        The question, or None where the scene has no certain answer.
    """
    asked = _CAPTION if kind == CAPTION else KINDS[kind]
    if len(scene.digits) not in asked.counts:
        return None
    slots = asked.slots(scene, rng)
    if slots is None:
        return None
    prompt, answer = asked.wordings[rng.integers(len(asked.wordings))]
    said = answer.format(**slots)
    return Question(kind, prompt.format(**slots), said, slots["short"], slots.get("about"))
