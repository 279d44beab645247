"""Text without pictures: what the tokenizers and the language model's first stage learn from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .digits import load_source
from .questions import KINDS, Question, ask, full_phrase
from .scenes import Scene, random_scene

# A few everyday words, so that a visitor's own wording is more than single letters.
EVERYDAY = (
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "word", "but", "not", "what", "all", "were", "we", "when", "your", "can", "said", "there",
    "use", "an", "each", "which", "she", "do", "how", "their", "if", "will", "up", "other",
    "about", "out", "many", "then", "them", "these", "so", "some", "her", "would", "make", "like",
    "him", "into", "time", "has", "look", "two", "more", "write", "go", "see", "number", "no",
    "way", "could", "people", "my", "than", "first", "water", "been", "call", "who", "now",
    "find", "long", "down", "day", "did", "get", "come", "made", "may", "part", "please",
    "picture", "photo", "image", "question", "answer", "colour", "color", "digit", "background",
    "describe", "show", "tell", "why", "where", "any", "says",
)  # fmt: skip


def random_questions(seed: int) -> Iterator[tuple[Scene, Question]]:
    """Scenes that are never drawn, each with one question; endless, and fixed by the seed."""
    source = load_source("train")
    rng = np.random.default_rng([11, seed])
    kinds = list(KINDS)
    while True:
        kind = kinds[rng.integers(len(kinds))]
        scene = random_scene(source, rng, int(rng.choice(KINDS[kind].counts)))
        question = ask(kind, scene, rng)
        if question is not None:
            yield scene, question


def as_text(scene: Scene) -> str:
    """The scene in words, all that a question may need."""
    sentences = [f"{full_phrase(digit)}." for digit in scene.digits]
    return " ".join(
        [*(s[0].upper() + s[1:] for s in sentences), f"The background is {scene.tone}."]
    )


def tokenizer_corpus(count: int = 8000) -> Iterator[str]:
    """Lines for training tokenizers: prompts, answers and a few everyday words."""
    questions = random_questions(seed=0)
    for _ in range(count):
        _, question = next(questions)
        yield question.prompt
        yield question.answer
    yield from (word for _ in range(20) for word in EVERYDAY)
