"""How likely each of some answers is: their tokens as a tree, walked by several rows at once.

Answers that begin alike share that beginning, and the first step scores the first token of all. A
row walks down from a node to one of its children and puts the others on its to-do list. It returns
to them by taking tokens back, which costs nothing, because the keys and values of everything above
are still in its slot. A row whose list is empty takes over the node of another row's list that is
nearest the root: there the most work is left, and the two rows differ least. So any number of rows
works, and it may change at every step. This module knows nothing of graphs, text or requests.
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
        token: the last token of that beginning.
        depth: the number of its tokens.
        logprob: the sum of their log-probabilities.
        children: by token.
    """

    token: int
    depth: int
    logprob: float = 0.0
    children: dict[int, _Node] = field(default_factory=dict)


@dataclass(eq=False)
class _Row:
    """One row of the batch.

    Attributes:
        node: the beginning that the row has read.
        todo: children of the nodes above that are still to be visited, the deepest last.
    """

    node: _Node
    todo: list[_Node] = field(default_factory=list)


class CandidateTree:
    """The scores of some answers.

    Args:
        candidates: token ids of each, none of them empty.
    """

    def __init__(self, candidates: Sequence[Sequence[int]]) -> None:
        root = _Node(token=-1, depth=0)
        self._ends = [_add_path(root, tokens) for tokens in candidates]
        self._rows = [_Row(root)]

    @property
    def logprobs(self) -> list[float]:
        """The sum of the log-probabilities of each candidate's tokens, once no row is left."""
        return [end.logprob for end in self._ends]

    def accept(self, logits: npt.NDArray[np.generic], most: int) -> list[Move]:
        """Takes the logits `[rows, vocab]`; returns the rows of the next step, none at the end.

        Args:
            logits: of the rows, one at first.
            most: how many rows the next step may have. Rows that still have work of their own go
                on even if they are more.

        Raises:
            EngineError: the logits are not numbers.
        """
        rows = self._rows
        for row, values in zip(rows, logits, strict=True):
            _score(row, values)
        own = [(index, row.todo.pop()) for index, row in enumerate(rows) if row.todo]
        handed_over: list[tuple[int, _Node]] = []
        while len(own) + len(handed_over) < most:
            others = [index for index, row in enumerate(rows) if row.todo]
            if not others:
                break
            source = min(others, key=lambda index: rows[index].todo[0].depth)
            handed_over.append((source, rows[source].todo.pop(0)))
        self._rows = [
            *(_Row(node, rows[index].todo) for index, node in own),
            *(_Row(node) for _, node in handed_over),
        ]
        return [
            (index, rows[index].node.depth - node.depth + 1, node.token)
            for index, node in (*own, *handed_over)
        ]


def _add_path(root: _Node, tokens: Sequence[int]) -> _Node:
    """The node of these tokens; nodes that are missing on the way are added."""
    node = root
    for token in tokens:
        if token not in node.children:
            node.children[token] = _Node(token, node.depth + 1)
        node = node.children[token]
    return node


def _score(row: _Row, logits: npt.NDArray[np.generic]) -> None:
    """Scores the children of a row's node; those that have children go on its to-do list."""
    logprobs = log_probabilities(scores_from_logits(logits))
    for child in row.node.children.values():
        child.logprob = row.node.logprob + float(logprobs[child.token])
        if child.children:
            row.todo.append(child)
