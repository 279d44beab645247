"""Text out: deltas join to exactly the one-shot decoding, for any ids and any tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from iblip.engines.language_model.detokenise import Detokeniser

CHECKPOINTS = Path(__file__).parents[3] / "checkpoints"
DEMOS = ("instructblip-demo-vicuna", "instructblip-demo-flant5")
KINDS = ("llama", "t5", "opt", "bert", *DEMOS)

many = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    if request.param in tokenizers:
        return tokenizers[request.param]
    path = CHECKPOINTS / request.param / "tokenizer.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return Tokenizer.from_file(str(path))


def deltas(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokeniser = Detokeniser(tokenizer)
    return [*map(detokeniser.feed, ids), detokeniser.flush()]


@many
@given(text=st.text(max_size=40))
def test_any_text_comes_out_as_decoded_at_once(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@many
@given(data=st.data())
def test_any_ids_come_out_as_decoded_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    # Also ids that no text has: broken characters, special tokens amid text, ids past the end.
    size = tokenizer.get_vocab_size()
    ids = data.draw(st.lists(st.integers(0, size + 3), max_size=25))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


@many
@given(data=st.data())
def test_spaces_and_bytes_come_out_as_decoded_at_once(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    vocabulary = tokenizer.get_vocab()
    odd = sorted(
        id_
        for token, id_ in vocabulary.items()
        if token.startswith(("▁", "<0x", "Ġ", "<", "[", "##")) or len(token) == 1
    )
    ids = data.draw(st.lists(st.sampled_from(odd), max_size=25))
    assert "".join(deltas(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_is_shown_whole(tokenizers: dict[str, Tokenizer]) -> None:
    for name in ("llama", "opt"):
        tokenizer = tokenizers[name]
        ids = tokenizer.encode("a 🦉 b").ids
        shown = deltas(tokenizer, ids)
        assert any("🦉" in delta for delta in shown)
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown)


def test_words_are_shown_as_they_come(tokenizers: dict[str, Tokenizer]) -> None:
    for tokenizer in tokenizers.values():
        ids = tokenizer.encode("the 3 is red", add_special_tokens=False).ids
        shown = deltas(tokenizer, ids)
        assert shown[-1] == ""  # nothing is left for the end
        assert all(shown[:-1][1:])  # every token but perhaps a first, lone space, shows its text
