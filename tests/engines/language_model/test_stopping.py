"""Stop strings: where a text ends does not depend on how it was cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iblip.engines.language_model.stopping import StopStrings

LETTERS = st.sampled_from("aabé#🙂 ")
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4).map(tuple)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first: by the definition, slowly."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(st.lists(TEXTS, max_size=8), STOPS)
def test_any_deltas_end_where_the_whole_text_does(
    deltas: list[str], stops: tuple[str, ...]
) -> None:
    watch = StopStrings(stops)
    shown = "".join(watch.feed(delta) for delta in deltas)
    assert shown + watch.flush() == cut("".join(deltas), stops)
    assert watch.stopped == (cut("".join(deltas), stops) != "".join(deltas))


@given(TEXTS, STOPS)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(
    text: str, stops: tuple[str, ...]
) -> None:
    watch = StopStrings(stops)
    shown = "".join(map(watch.feed, text))
    if not watch.stopped:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_partial_stop_string_is_held_back_until_it_is_decided() -> None:
    watch = StopStrings(("###",))
    assert watch.feed("red #") == "red "
    assert watch.feed("#") == ""
    assert watch.feed("1") == "##1"
    assert watch.feed("###Human") == ""
    assert watch.stopped


@pytest.mark.parametrize("stops", [(), ("zz",)])
def test_text_without_stop_strings_passes_at_once(stops: tuple[str, ...]) -> None:
    assert StopStrings(stops).feed("It is red.") == "It is red."
