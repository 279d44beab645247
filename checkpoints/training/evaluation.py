"""Asks a saved checkpoint the held-out questions, and counts what is right."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .answering import Item, answerer_of


@dataclass(frozen=True)
class Evaluation:
    """Exact matches of whitespace-stripped greedy answers.

    Attributes:
        kinds: per kind of question, how many were right and how many asked.
        wrong: what was asked, wanted and said wherever that differed.
    """

    kinds: dict[str, tuple[int, int]]
    wrong: list[dict[str, str]]

    @property
    def right(self) -> int:
        """How many answers matched."""
        return sum(right for right, _ in self.kinds.values())

    @property
    def asked(self) -> int:
        """How many questions there were."""
        return sum(asked for _, asked in self.kinds.values())

    def as_table(self) -> str:
        """A Markdown table with a row a kind."""
        rows = [*self.kinds.items(), ("**all**", (self.right, self.asked))]
        lines = [
            f"| {kind} | {asked} | {right} | {100 * right / asked:.1f} % |"
            for kind, (right, asked) in rows
        ]
        return "\n".join(["| kind | asked | right | exact match |", "|---|--:|--:|--:|", *lines])

    def as_json(self) -> str:
        """The same figures and every wrong answer, for other programs."""
        return json.dumps(
            {
                "exact_match": self.right / self.asked,
                "asked": self.asked,
                "right": self.right,
                "kinds": {k: {"right": r, "asked": a} for k, (r, a) in self.kinds.items()},
                "wrong": self.wrong,
            },
            indent=2,
        )


def read_items(examples: Path) -> list[Item]:
    """Read `examples.jsonl` from a directory."""
    lines = (examples / "examples.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return [
        Item(r["id"], examples / r["image"], r["kind"], r["prompt"], r["answer"]) for r in records
    ]


def evaluate(
    directory: Path, *, empty_instruction: bool = False, limit: int | None = None
) -> Evaluation:
    """Ask a checkpoint the questions in its `examples` folder, all or the first `limit`."""
    items = read_items(directory / "examples")[:limit]
    answerer = answerer_of(directory, empty_instruction=empty_instruction)
    kinds = {item.kind: (0, 0) for item in items}
    wrong = []
    for item, said in zip(items, answerer.answer(items), strict=True):
        right, asked = kinds[item.kind]
        match = said == item.answer.strip()
        kinds[item.kind] = (right + match, asked + 1)
        if not match:
            wrong.append(
                {"id": item.name, "prompt": item.prompt, "wanted": item.answer, "said": said}
            )
    return Evaluation(kinds, wrong)
