"""`text`, `ranking`, `images`, `invariance`: answers of the whole model, compared with those that
the same build gave on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from iblip.engines.evaluation.asking import first_tokens, ranking, submit
from iblip.engines.language_model.types import Answer, Generation
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.references import AnswerReference
from iblip.serving.proving.record import Fact
from iblip.serving.proving.subject import (
    NothingToMeasureError,
    Subject,
    differences,
    least_share,
)

SHOWN = 3
"""Answers that differ and are shown."""

TOGETHER = 16
"""Requests at once, at least, against the same ones alone."""

STUB_TOKENS = 8
"""Most tokens of an answer over stubs."""

Pairs = Sequence[tuple[AnswerReference, Answer]]

FIRST_TOKENS = tuple[tuple[int, float], ...]


def compare_texts(subject: Subject) -> Iterator[Fact]:
    """Greedy answers and first tokens, then beams, if the build has the slots for them."""
    subject.answers("text")
    with subject.open() as pipeline:
        greedy = _ask_all(subject, pipeline, "text")
        yield from _same_tokens(subject, "greedy", greedy)
        yield from _compare_first_tokens(subject, greedy)
        if any(answer.way == "beams" for answer in subject.compared.answers):
            yield from _same_tokens(subject, "beams", _ask_all(subject, pipeline, "beams"))
            return
    slots = subject.manifest.limits.slots
    yield Fact(name="beams", value=f"not compared: with {slots} slots, the build recorded none")


def compare_rankings(subject: Subject) -> Iterator[Fact]:
    """The most likely candidate of each ranking, and the candidates' log-probabilities."""
    subject.answers("ranking")
    with subject.open() as pipeline:
        pairs = _ask_all(subject, pipeline, "ranking")
    found = [(reference.ranking, ranking(answer)) for reference, answer in pairs]
    same = sum(int(np.argmax(a)) == int(np.argmax(b)) for a, b in found)
    yield Fact(
        name=f"the same candidate first, of {len(found)} rankings",
        value=same / len(found),
        limit=least_share(subject.agreement, len(found)),
        sense="least",
    )
    apart = max(float(np.abs(np.subtract(a, b)).max()) for a, b in found)
    yield Fact(name="largest difference of a candidate's log-probability, nats", value=apart)


def compare_images(subject: Subject) -> Iterator[Fact]:
    """Answers about several images."""
    if subject.manifest.limits.images == 1:
        raise NothingToMeasureError("the build takes one image a request")
    subject.answers("images")
    with subject.open() as pipeline:
        yield from _same_tokens(subject, "two images", _ask_all(subject, pipeline, "images"))


def compare_crowds(subject: Subject) -> Iterator[Fact]:
    """The same requests one after another, then all at once. Only on the CPU, in float32, must
    all be the same: a GPU's libraries choose their kernels by the number of rows."""
    references = subject.answers("text")
    repeated = [references[index % len(references)] for index in range(_crowd(references))]
    with subject.open() as pipeline:

        def start(reference: AnswerReference) -> Generation:
            return _submit(subject, pipeline, reference)

        alone = [start(reference).result().token_ids for reference in references]
        crowd = [generation.result() for generation in [start(r) for r in repeated]]
    expected = [alone[index % len(references)] for index in range(len(repeated))]
    same = sum(a == b.token_ids for a, b in zip(expected, crowd, strict=True))
    exact = set(subject.engines.values()) == {"onnxruntime"} and all(
        word == "fp32" for word in subject.manifest.precision.values()
    )
    yield Fact(
        name=f"the same tokens alone and among {len(repeated)}, answers",
        value=same,
        limit=len(repeated) if exact else None,
        sense="least",
    )


def _crowd(references: Sequence[AnswerReference]) -> int:
    return max(TOGETHER, len(references))


def _ask_all(subject: Subject, pipeline: Pipeline, way: str) -> Pairs:
    return [(r, _submit(subject, pipeline, r).result()) for r in subject.answers(way)]


def _submit(subject: Subject, pipeline: Pipeline, reference: AnswerReference) -> Generation:
    """Asks what a recorded answer was given to."""
    options = dict(reference.options)
    if subject.stubs and not reference.ranking:  # what computes nothing does not end an answer
        options["max_new_tokens"] = STUB_TOKENS
    return submit(pipeline, subject.compared.pixels, reference.images, reference.prompt, options)


def _same_tokens(subject: Subject, title: str, pairs: Pairs) -> Iterator[Fact]:
    different = [(r, answer) for r, answer in pairs if r.token_ids != answer.token_ids]
    yield Fact(
        name=f"{title}: the same tokens, share of {len(pairs)} answers",
        value=1 - len(different) / len(pairs),
        limit=least_share(subject.agreement, len(pairs)),
        sense="least",
    )
    for reference, answer in different[:SHOWN]:
        yield Fact(name=f"{title}: {reference.name} differs", value=differences(reference, answer))


def _compare_first_tokens(subject: Subject, pairs: Pairs) -> Iterator[Fact]:
    both = [(r.first, first_tokens(answer)) for r, answer in pairs if r.first]
    both = [(a, b) for a, b in both if b]
    if not both:
        return
    limits = subject.thresholds
    divergences = [divergence(expected, found) for expected, found in both]
    yield Fact(
        name="greedy: mean divergence of the first token, nats",
        value=sum(divergences) / len(divergences),
        limit=limits.divergence,
    )
    yield Fact(
        name="greedy: the same most likely first token, share",
        value=sum(expected[0][0] == found[0][0] for expected, found in both) / len(both),
        limit=least_share(limits.top1, len(both)),
        sense="least",
    )


def divergence(expected: FIRST_TOKENS, found: FIRST_TOKENS) -> float:
    """Kullback-Leibler divergence, in nats, of the distribution `found` from the one `expected`.

    Of each the most likely tokens and their log-probabilities are known. A token that `found` does
    not tell is taken to be as likely as the least likely one that it tells: it is no likelier. All
    other tokens are taken together.
    """
    told: Mapping[int, float] = dict(found)
    least = min(told.values())
    pairs = [(p, told.get(token, least)) for token, p in expected]
    total = sum(math.exp(p) * (p - q) for p, q in pairs)
    p, q = (max(1 - sum(math.exp(pair[side]) for pair in pairs), 1e-12) for side in (0, 1))
    return max(total + p * math.log(p / q), 0.0)
