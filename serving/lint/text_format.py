"""Where each field of a protobuf text file stands.

protobuf's own parser reads the values, and forgets the lines. This one keeps the lines: it reads
any text that the other accepts, knows no schema, and stops where it understands no more.
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
"""What stands between words. protobuf's parser in C++, which Triton has, knows no other; that in
Python knows all of Unicode's."""

_CLOSING = {"{": "}", "<": ">"}


@dataclass(frozen=True)
class Entry:
    """Among the entries of a map, the one with this key."""

    key: str


Step = str | int | Entry
"""Of a path to a field: a field's name, the number of one of several, the key of a map's entry."""


@dataclass
class Node:
    """A value of the text.

    Attributes:
        line: where it stands; from 1.
        named: where its field's name stands.
        fields: of a message, by name, each in the text's order.
        text: of a plain value, without quotes; empty of a message.
    """

    line: int
    named: int = 1
    fields: dict[str, list[Node]] = field(default_factory=dict)
    text: str = ""

    def find(self, *path: Step) -> Node | None:
        """What lies at the end of a path such as `"input", 1, "dims"`; `None` if nothing does."""
        node, complete = self._follow(path)
        return node if complete else None

    def line_of(self, *path: Step) -> int:
        """The line of that, or of the last that is there on the way to it.

        Of a field it is that of its name, of a map's entry that of its key.
        """
        node, complete = self._follow(path)
        if complete and isinstance(path[-1], Entry):
            return node.fields["key"][0].line
        return node.named if complete and isinstance(path[-1], str) else node.line

    def walk(self, *path: str) -> Iterator[tuple[tuple[str, ...], Node]]:
        """Every value below, with the names of the fields on the way to it."""
        for name, values in self.fields.items():
            for value in values:
                yield (*path, name), value
                yield from value.walk(*path, name)

    def _follow(self, path: tuple[Step, ...]) -> tuple[Node, bool]:
        node, several = self, [self]
        for step in path:
            if isinstance(step, str):
                several = node.fields.get(step, [])
                found = several[:1]
            elif isinstance(step, int):
                found = several[step : step + 1]
            else:
                found = [one for one in several if one.key == step.key]
            if not found:
                return node, False
            node = found[0]
        return node, True

    @property
    def key(self) -> str:
        """Of a map's entry."""
        values = self.fields.get("key", [])
        return values[0].text if values else ""


def tree_of(text: str) -> Node:
    """The message that a text is; as much of it as can be read."""
    reader = _Reader(text)
    root = Node(line=1)
    reader.message(root, end=None)
    return root


def odd_space(text: str) -> tuple[int, str] | None:
    """The first space between words that is none to Triton, after its line; `None` of none."""
    for skipped, line in _matches(text):
        if skipped.lastgroup == "skip" and not skipped[0].startswith("#"):
            for at, character in enumerate(skipped[0]):
                if character not in SPACE and character not in ",;":
                    return line + skipped[0].count("\n", 0, at), character
    return None


class _Reader:
    """Tokens of a text, one after another."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def message(self, node: Node, end: str | None) -> None:
        """Reads fields into `node`, up to and with the mark `end`."""
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
        """One word, or strings that stand side by side and are one."""
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
    """Words, marks, and what is skipped, each with the line on which it begins."""
    line, at = 1, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:  # a quote without an end: the real parser says so
            return
        yield match, line
        line += match[0].count("\n")
        at = match.end()
