"""What is compared: a checkpoint as transformers runs it, and builds of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iblip.export.artifact.manifest import Manifest
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.examples import Example
from iblip.export.images import pixels_from_image
from iblip.export.progress import Advance, Progress
from iblip.export.verification.choosing import ReferenceChoice
from iblip.export.verification.thresholds import Thresholds, thresholds_of

if TYPE_CHECKING:
    from iblip.export.verification.recording import Recording
    from iblip.export.verification.reference import Reference

RECORDED = 16
"""Most examples for which the reference is recorded block by block."""

STREAMED_TOKENS = 8
"""Most tokens of an answer of a streamed reference, which reads the checkpoint for each token."""

STREAMED_EXAMPLES = 4
"""Most examples for a streamed reference, unless the caller gives a number."""

Array = npt.NDArray[Any]


class Original:
    """The checkpoint's side of every comparison; each result is computed once, on first use.

    Args:
        checkpoint: what the builds were made from.
        examples: questions about images; may be empty.
        progress: shows what takes long.
        choice: how transformers runs.
        limit: most examples to record, made-up ones included.

    Attributes:
        options: for every answer that is compared.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        examples: Sequence[Example],
        progress: Progress,
        choice: ReferenceChoice,
        limit: int | None = None,
    ) -> None:
        self.checkpoint, self.examples, self.progress = checkpoint, examples, progress
        self.choice, self.limit = choice, limit
        self.options: dict[str, Any] = (
            {"max_new_tokens": STREAMED_TOKENS} if choice.streamed else {}
        )
        self._references: dict[int, Reference] = {}
        self._texts: dict[tuple[str, int], list[str]] = {}
        self._recordings: list[Recording] = []
        self._logits_of_base: Array | None = None

    def reference(self, positions: int) -> Reference:
        """transformers' model of the checkpoint, for sequences of that many positions."""
        from iblip.export.verification.references import reference_of

        if positions not in self._references:
            with self.progress.stage("load transformers' model"):
                self._references[positions] = reference_of(
                    self.checkpoint, positions, streamed=self.choice.streamed
                )
        return self._references[positions]

    def recordings(self, positions: int) -> list[Recording]:
        """What the reference computes for some examples, block by block."""
        from iblip.export.verification.recording import choose_images, record

        if not self._recordings:
            side = self.checkpoint.config.vision_config.image_size
            count = STREAMED_EXAMPLES if self.choice.streamed else RECORDED
            questions = choose_images(self.examples, side, min(count, self.limit or count))
            reference = self.reference(positions)
            with self.progress.stage("record transformers", len(questions), "examples") as advance:
                self._recordings = record(reference, questions, advance)
        return self._recordings

    def logits_of_base(self, positions: int) -> Array | None:
        """Logits `[recordings, vocab]` of the first tokens without the checkpoint's adapters.

        `None` if it has none.
        """
        from iblip.export.adapters.adapted import Adapted
        from iblip.export.verification.recording import record
        from iblip.export.verification.references import reference_of

        if not isinstance(self.checkpoint, Adapted):
            return None
        if self._logits_of_base is None:
            asked = [(one.name, one.image, one.prompt) for one in self.recordings(positions)]
            title = "run transformers without the adapter"
            with self.progress.stage(title, len(asked), "examples") as advance:
                base = reference_of(self.checkpoint.base, positions, streamed=self.choice.streamed)
                rows = [one.tensors["logits"] for one in record(base, asked, advance)]
            self._logits_of_base = np.concatenate(rows)
        return self._logits_of_base

    def texts(self, way: str, positions: int) -> list[str]:
        """The reference's answer to every example, generated in one of `evaluation.texts.WAYS`."""
        from iblip.engines.evaluation.texts import reference_texts

        key = way, positions
        if key not in self._texts:
            reference = self.reference(positions)
            self._texts[key] = reference_texts(
                reference, self.examples, self.progress, way, **self.options
            )
        return self._texts[key]


class Stopwatch:
    """Progress that is shown as before, and timed step by step.

    Attributes:
        seconds: how long each step of every stage took, in order.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: list[float] = []

    @contextmanager
    def stage(self, title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
        """Opens a stage of the progress beneath."""
        with self._progress.stage(title, total, unit) as shown:
            moments = [time.monotonic()]

            def advance(amount: int) -> None:
                moments.append(time.monotonic())
                shown(amount)

            yield advance
            self.seconds += [after - before for before, after in pairwise(moments)]

    def note(self, message: str) -> None:
        """Shows a message."""
        self._progress.note(message)


@dataclass(frozen=True)
class Subject:
    """A build under comparison.

    Attributes:
        directory: of the build.
        manifest: of the build.
        graphs: of the build.
        original: what it is compared with.
    """

    directory: Path
    manifest: Manifest
    graphs: Sequence[OnnxGraph]
    original: Original

    @property
    def progress(self) -> Progress:
        """Shows what takes long."""
        return self.original.progress

    @property
    def positions(self) -> int:
        """Positions of a sequence in this build."""
        return self.manifest.limits.max_length

    @property
    def recordings(self) -> list[Recording]:
        """The reference's recordings."""
        return self.original.recordings(self.positions)

    @cached_property
    def pixels(self) -> list[Array]:
        """Each recording's image as the client sends it, uint8 `[height, width, 3]`."""
        settings = self.manifest.preprocessing
        return [pixels_from_image(recording.image, settings) for recording in self.recordings]

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """By way: the build's answers to every example, as far as they have been generated."""
        return {}

    @cached_property
    def answer_seconds(self) -> list[float]:
        """Seconds of each greedy answer, as far as they have been generated."""
        return []

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds for all components together."""
        return thresholds_of(record.precision for record in self.manifest.components.values())

    def answers(self, way: str) -> list[str]:
        """The build's answer to every example."""
        from iblip.engines.evaluation.texts import build_texts

        if way not in self.texts:
            examples, watch = self.original.examples, Stopwatch(self.progress)
            texts = build_texts(
                self.directory, self.manifest, examples, watch, [way], **self.original.options
            )
            self.texts.update(texts)
            if way == "text":
                self.answer_seconds.extend(watch.seconds)
        return self.texts[way]

    @property
    def answer_s(self) -> float | None:
        """Median seconds of a greedy answer; `None` if none was generated."""
        return statistics.median(self.answer_seconds) if self.answer_seconds else None

    @property
    def size(self) -> int:
        """Bytes of the build's files, weights included; a file with several names counts once."""
        files = [path.stat() for path in self.directory.rglob("*") if path.is_file()]
        return sum({(file.st_dev, file.st_ino): file.st_size for file in files}.values())

    def mark(self, texts: Sequence[str]) -> list[bool]:
        """Whether each answer to the examples is right."""
        return [e.is_right(text) for e, text in zip(self.original.examples, texts, strict=True)]

    def reference_logits(self) -> Array:
        """The reference's logits of each recording's first token, `[recordings, vocab]`."""
        return np.concatenate([recording.tensors["logits"] for recording in self.recordings])
