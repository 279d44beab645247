"""What the stages look at: a build, its references, and how much of them is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iblip.engines.kinds import runs_on_gpu
from iblip.engines.language_model.types import Answer
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.references import AnswerReference, References
from iblip.export.verification.thresholds import AGREEMENT, Thresholds, thresholds_of
from iblip.serving.proving.record import Fact

NONE_KEPT = "the build holds no references: it was made by a version that kept none. Rebuild it."

WITHOUT_QUESTIONS = (
    "Describe the image.",
    "What is in the image?",
    "What is unusual about this image?",
    "Where was this taken?",
)
"""Asked for memory and speed where the build holds no questions."""


SHOWN = 120
"""Characters of an answer that are shown."""


class NothingToMeasureError(Exception):
    """A stage does not apply, or has nothing to compare with; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A build under proof.

    Attributes:
        directory: of the build.
        manifest: of the same build.
        limit: most questions of each way; `None` is all.
        torch: whether torch may be measured beside it.
        stubs: whether the GPU is a stub, which computes nothing.
    """

    directory: Path
    manifest: Manifest
    limit: int | None = None
    torch: bool = True
    stubs: bool = False

    @cached_property
    def references(self) -> References:
        """What the build holds to compare with.

        Raises:
            BuildDirectoryError: its files are not those of its manifest.
            NothingToMeasureError: it holds nothing.
        """
        references = References.read(self.directory, self.manifest)
        if references is None:
            raise NothingToMeasureError(NONE_KEPT)
        return references

    @property
    def compared(self) -> References:
        """The references of a build that was verified.

        Raises:
            NothingToMeasureError: the build was not verified, and has nothing to compare with.
        """
        if reason := self.references.skipped:
            raise NothingToMeasureError(
                f"the build was made with {reason} and holds nothing to compare with"
            )
        return self.references

    def answers(self, way: str) -> list[AnswerReference]:
        """The recorded answers to questions that were asked in this way.

        Raises:
            NothingToMeasureError: there are none.
        """
        answers = [answer for answer in self.compared.answers if answer.way == way]
        if not answers:
            raise NothingToMeasureError(f"the build holds no answer of the way {way!r}")
        return answers[: self.limit]

    @property
    def engines(self) -> Mapping[str, str]:
        """The engine's kind of each component."""
        return {name: record.engine.kind for name, record in self.manifest.components.items()}

    @property
    def on_gpu(self) -> bool:
        """Whether an engine runs on a GPU whose number it is given."""
        return any(map(runs_on_gpu, self.engines.values()))

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds for all components together."""
        return thresholds_of(self.manifest.precision.values())

    @property
    def agreement(self) -> float:
        """The smallest share of answers that must be the same."""
        return min(AGREEMENT[word] for word in self.manifest.precision.values())

    def open(self) -> Pipeline:
        """The build on its own engines, not yet entered."""
        return Pipeline(self.directory, manifest=self.manifest)


Run = Callable[[Subject], Iterator[Fact]]
"""A stage: yields each fact as soon as it is known. Raises `NothingToMeasureError` where it does
not apply."""


def least_share(limit: float, count: int) -> float:
    """A limit on a share of `count`: one is the smallest share that a few can show, so that unless
    all must, one need not."""
    return limit if limit == 1 else min(limit, 1 - 1 / count)


def differences(reference: AnswerReference, answer: Answer) -> str:
    """Two answers that differ, in words."""
    expected, found = (shorten(text) for text in (reference.text, answer.text))
    return f"expected {expected!r}, found {found!r}"


def shorten(text: str) -> str:
    """The beginning of a text, if it is long."""
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"
