"""Where fields stand, in every form that protobuf's text has for them."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from iblip.serving.lint.text_format import Entry, find_invalid_space, tree_of

TEXT = """\
# name: "not this"
name: 'a' "b"  # nor this: {
input [
  { name: "x" dims: [ 1,
      -1 ] },
  {
    name: "y"
  }
]
input < name: "z"; dims: -2 >
parameters {
  key: "k"
  value: { string_value: "} [ # \\" '" }
}
parameters: { key: "l", value { } }
"""


def test_every_form_of_a_field_is_found_where_it_stands():
    tree = tree_of(TEXT)
    text_format.Parse(TEXT, model_config_pb2.ModelConfig())  # the real parser takes it, too
    assert tree.find("name").text == "ab"
    assert tree.line_of("name") == 2
    assert tree.line_of("input", 0, "dims") == 4
    assert tree.find("input", 0, "dims", 1).text == "-1"
    assert tree.line_of("input", 0, "dims", 1) == 5
    assert tree.line_of("input", 1) == 6
    assert tree.line_of("input", 1, "name") == 7
    assert tree.find("input", 2, "name").text == "z"
    assert tree.find("input", 2, "dims").text == "-2"
    assert tree.line_of("parameters", Entry("k")) == 12
    assert tree.line_of("parameters", Entry("k"), "value") == 13
    assert tree.line_of("parameters", Entry("l")) == 15


def test_an_entry_without_a_key_is_found_where_its_map_is():
    tree = tree_of('a: 1\nparameters {\n  value: { string_value: "x" }\n}\n')
    assert tree.line_of("parameters", Entry("")) == 2
    assert tree.line_of("parameters", Entry(""), "value") == 3


def test_what_is_not_there_is_found_as_far_as_it_is():
    tree = tree_of(TEXT)
    assert tree.find("input", 1, "dims") is None
    assert tree.line_of("input", 1, "dims") == 6
    assert tree.line_of("output", 0) == 1
    assert tree.line_of("parameters", Entry("none")) == 11


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: 1,\t;\r\n\f\vb: '\xa0' # \u3000", None),
        ("a: 1\n b:\n\xa0 2", (3, "\xa0")),
        ("a: 1 # \xa0\n\u2003b: 2", (2, "\u2003")),
    ],
)
def test_spaces_that_are_none_to_triton_are_found_between_words(text, found):
    assert find_invalid_space(text) == found


@pytest.mark.parametrize(
    "text", ["a {", "a: [ {", '"', "}", "[x", "a: -", "a: [", ":::", "a { b: ]"]
)
def test_damaged_text_is_read_as_far_as_it_goes(text):
    tree_of(text)


@given(st.text(alphabet="ab{}[]<>:,;-# \n\"'\\1", max_size=40))
def test_no_text_breaks_it(text):
    assert tree_of(text).line == 1
