"""How likely each of some answers is: their tokens as a tree, walked by several rows at once.

Answers that begin alike share that beginning, and the first step scores the first token of all. A
row walks down from a node to its first child, and keeps the others to do; it comes back to them by
taking tokens back, which costs nothing, because the keys and values of everything above are still
in its slot. A row that has nothing left takes over what another has to do, nearest the root: there
most is left, and least differs between the two. So any number of rows will do, one as well as many,
and their number may change at every step. Knows nothing of graphs, text or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.decoding.sampling import log_probabilities, scores_from_logits

Move = tuple[int, int, int]
"""A row of the next step: the row that it continues, how many of that row's last tokens are taken
back first, and the token that it goes on with."""


@dataclass(eq=False)
class _Node:
    """The beginning of an answer, or a whole one, or both.

    Attributes:
        token: its last one.
        depth: how many tokens it has.
        logprob: the sum of their log-probabilities.
        children: by token.
    """

    token: int
    depth: int
    logprob: float = 0.0
    children: dict[int, _Node] = field(default_factory=dict)


@dataclass(eq=False)
class _Row:
    """Attributes: node: what it has read. todo: children of what is above, the deepest last."""

    node: _Node
    todo: list[_Node] = field(default_factory=list)


class CandidateTree:
    """The scores of some answers.

    Args:
        candidates: token ids of each, none of them empty.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        root = _Node(token=-1, depth=0)
        self._ends = [_grown(root, tokens) for tokens in candidates]
        self._rows = [_Row(root)]

    @property
    def logprobs(self) -> list[float]:
        """The sum of the log-probabilities of each candidate's tokens, once there is no row."""
        return [end.logprob for end in self._ends]

    def accept(self, logits: npt.NDArray[np.generic], most: int) -> list[Move]:
        """Takes the logits `[rows, vocab]`; the rows of the next step, none where all is known.

        Args:
            logits: of the rows, one at first.
            most: rows at the next step. Those that still have something to do of their own go on
                even where they are more.

        Raises:
            EngineError: the logits are not numbers.
        """
        rows = self._rows
        for row, values in zip(rows, logits, strict=True):
            _score(row, values)
        own = [(index, row.todo.pop()) for index, row in enumerate(rows) if row.todo]
        taken: list[tuple[int, _Node]] = []
        while len(own) + len(taken) < most:
            others = [index for index, row in enumerate(rows) if row.todo]
            if not others:
                break
            source = min(others, key=lambda index: rows[index].todo[0].depth)
            taken.append((source, rows[source].todo.pop(0)))
        self._rows = [
            *(_Row(node, rows[index].todo) for index, node in own),
            *(_Row(node) for _, node in taken),
        ]
        return [
            (index, rows[index].node.depth - node.depth + 1, node.token)
            for index, node in (*own, *taken)
        ]


def _grown(root: _Node, tokens: Sequence[int]) -> _Node:
    """The node of these tokens, which are added where they are missing."""
    node = root
    for token in tokens:
        if token not in node.children:
            node.children[token] = _Node(token, node.depth + 1)
        node = node.children[token]
    return node


def _score(row: _Row, logits: npt.NDArray[np.generic]) -> None:
    """Scores the children of a row's node, and puts down those that have children of their own."""
    found = log_probabilities(scores_from_logits(logits))
    for child in row.node.children.values():
        child.logprob = row.node.logprob + float(found[child.token])
        if child.children:
            row.todo.append(child)
