"""The line of each field in a file in protobuf's text format.

protobuf's own parser reads the values and forgets the lines. This one keeps the lines: it reads any
text that the other accepts, knows no schema, and stops at what it cannot parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""(?P<skip>[\s,;]+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<mark>[{}<>\[\]:])
      | (?P<word>[^\s,;{}<>\[\]:"'\#]+)""",
    re.VERBOSE,
)
SPACE = frozenset(" \t\n\r\v\f")
"""White space between words in protobuf's C++ parser, which Triton uses. The Python parser also
accepts all of Unicode's."""

_CLOSING = {"{": "}", "<": ">"}


@dataclass(frozen=True)
class Entry:
    """The entry of a map with this key."""

    key: str


Step = str | int | Entry
"""One step of a path to a field: a field's name, the index of a value, or a map's entry."""


@dataclass
class Node:
    """A value in the text.

    Attributes:
        line: of the value, from 1.
        named: line of its field's name.
        fields: of a message, by name; the values in the text's order.
        text: of a scalar, without quotes; empty for a message.
    """

    line: int
    named: int = 1
    fields: dict[str, list[Node]] = field(default_factory=dict)
    text: str = ""

    def find(self, *path: Step) -> Node | None:
        """The value at a path such as `"input", 1, "dims"`; `None` if there is none."""
        node, complete = self._follow(path)
        return node if complete else None

    def line_of(self, *path: Step) -> int:
        """The line of the value at a path, or of the last value that exists on the way to it.

        A field's line is that of its name, a map entry's that of its key.
        """
        node, complete = self._follow(path)
        if complete and isinstance(path[-1], Entry) and "key" in node.fields:
            return node.fields["key"][0].line
        return node.named if complete and isinstance(path[-1], str) else node.line

    def walk(self, *path: str) -> Iterator[tuple[tuple[str, ...], Node]]:
        """Every value below this one, with the names of the fields on the way to it."""
        for name, values in self.fields.items():
            for value in values:
                yield (*path, name), value
                yield from value.walk(*path, name)

    def _follow(self, path: tuple[Step, ...]) -> tuple[Node, bool]:
        node, several = self, [self]
        for step in path:
            if isinstance(step, str):
                several = node.fields.get(step, [])
                matches = several[:1]
            elif isinstance(step, int):
                matches = several[step : step + 1]
            else:
                matches = [entry for entry in several if entry.key == step.key]
            if not matches:
                return node, False
            node = matches[0]
        return node, True

    @property
    def key(self) -> str:
        """The key of a map's entry; empty for other values."""
        values = self.fields.get("key", [])
        return values[0].text if values else ""


def tree_of(text: str) -> Node:
    """The message in a text, as far as it can be parsed."""
    reader = _Reader(text)
    root = Node(line=1)
    reader.message(root, end=None)
    return root


def find_invalid_space(text: str) -> tuple[int, str] | None:
    """Line and character of the first white space that Triton does not accept, if any."""
    for skipped, line in _matches(text):
        if skipped.lastgroup == "skip" and not skipped[0].startswith("#"):
            for at, character in enumerate(skipped[0]):
                if character not in SPACE and character not in ",;":
                    return line + skipped[0].count("\n", 0, at), character
    return None


class _Reader:
    """Parses the tokens of a text."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def message(self, node: Node, end: str | None) -> None:
        """Reads fields into `node`, up to and including the mark `end`."""
        while self._more():
            word, line = self._take()
            if word == end:
                return
            if word == "[":  # an extension's name, which ends in the same mark
                while self._more() and self._take()[0] != "]":
                    pass
            if self._peek() == ":":
                self._take()
            self._values(node.fields.setdefault(word, []), line)

    def _values(self, into: list[Node], line: int) -> None:
        if self._peek() != "[":
            into.append(self._value(line))
            return
        self._take()
        while self._more() and self._peek() != "]":
            into.append(self._value(line))
        if self._more():
            self._take()

    def _value(self, named: int) -> Node:
        node = Node(line=self._line(), named=named)
        word = self._peek()
        if word in _CLOSING:
            self._take()
            self.message(node, _CLOSING[word])
        else:
            node.text = self._plain()
        return node

    def _plain(self) -> str:
        """A word, or adjacent strings, which are concatenated."""
        if not self._more():
            return ""
        text = self._take()[0]
        if text[:1] not in ("'", '"'):
            return text
        parts = [text[1:-1]]
        while self._peek()[:1] in ("'", '"'):
            parts.append(self._take()[0][1:-1])
        return "".join(parts)

    def _more(self) -> bool:
        return self._at < len(self._tokens)

    def _line(self) -> int:
        return self._tokens[self._at][1] if self._more() else 1

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._more() else ""

    def _take(self) -> tuple[str, int]:
        self._at += 1
        return self._tokens[self._at - 1]


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    return ((match[0], line) for match, line in _matches(text) if match.lastgroup != "skip")


def _matches(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Words, marks and skipped text, each with the line on which it begins."""
    line, at = 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:  # an unterminated quote, which the real parser reports
            return
        yield match, line
        line += match[0].count("\n")
        at = match.end()
