"""The English of pages, docstrings and messages: what is refused, and that none of it is left."""

from __future__ import annotations

import pytest

from tests.docs.style import EVERYWHERE, FILLERS, PAGES, faults, faults_of_text


def test_no_refused_word_is_left() -> None:
    assert list(faults()) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A picture of\na dog", "picture"),
        ("It wants numpy 1", "wants"),
        ("Traces are kept in a cache", "kept"),
        ("Each room imports", "room"),
        ("expected a whole number", "whole number"),
        ("the products that err most", "err most"),
        ("nothing is the likeliest", "likeliest"),
    ],
)
def test_a_refused_word_is_found_with_its_line(text: str, word: str) -> None:
    found = list(faults_of_text(f"First line.\n{text}", {**EVERYWHERE, **PAGES}))
    assert word in [words for _, words, _ in found]
    assert all(line >= 2 for line, _, _ in found)


@pytest.mark.parametrize("text", ["`wants`", "```text\nkept\n```", "[a](rooms.md)", "production"])
def test_code_and_other_words_are_left_alone(text: str) -> None:
    assert list(faults_of_text(text, {**EVERYWHERE, **PAGES})) == []


@pytest.mark.parametrize("text", ["None.", "See above.", "Of its source.", "So many zeros."])
def test_a_docstring_that_says_nothing_is_refused(text: str) -> None:
    assert FILLERS.fullmatch(text)
