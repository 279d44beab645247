"""A run: every row that has no answer yet is asked, and its answer written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iblip.engines.language_model.keywords import Options, options_with_keywords
from iblip.export.errors import (
    EngineError,
    IblipError,
    InputError,
    OptionError,
    QueueFullError,
)
from iblip.export.images import Reading
from iblip.serving.bulk.output import Output, open_output
from iblip.serving.bulk.rows import BulkRow, Rows, Shard, key_of, prompts_of
from iblip.serving.bulk.targets import Target, Targets
from iblip.serving.client.compat import resolve_options
from iblip.serving.client.errors import ClientError
from iblip.serving.client.mapping import Question, map_rows
from iblip.serving.client.messages import pixels_of_request
from iblip.serving.client.tally import Watcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALL = Shard()

FAULTS_IN_A_ROW = 16
"""Questions that fail by the engine or, at its beginning, by the run's options, one after another,
before the run ends: it is not they."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked of every row.

    Attributes:
        options: how to generate.
        prompts: about rows that have none of their own.
        compat: the original to answer like, or `None`.
        preprocessing: how files become RGB.
        shard: the part of the rows to ask about.
    """

    options: Options
    prompts: tuple[str, ...] = ()
    compat: str | None = None
    preprocessing: Reading = "viewed"
    shard: Shard = ALL

    def to_json(self, targets: Targets) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        options, _ = resolve_options(targets.contract, self.options, self.compat)
        return {
            "build": targets.identity(),
            "options": options.to_mapping(),
            "compat": self.compat,
            "preprocessing": self.preprocessing,
            "shard": str(self.shard),
        }


@dataclass(frozen=True, kw_only=True)
class BulkSummary:
    """What a run has done.

    Attributes:
        answered: questions that were answered.
        failed: questions whose line has an error.
        present: questions whose line was there from before.
        vision_cache_hits: images that were found encoded, once for each question; `None` of
            servers, where other callers' count, too.
        cached_prompt_tokens: positions of prompts that were taken from the prefix cache; `None`
            where the answers do not say it, as vLLM's.
    """

    answered: int
    failed: int
    present: int
    vision_cache_hits: int | None = None
    cached_prompt_tokens: int | None = None

    def __str__(self) -> str:
        before = f", {self.present:,} from before" if self.present else ""
        return f"{self.answered:,} answered, {self.failed:,} failed{before}{self._from_caches()}"

    def _from_caches(self) -> str:
        counts = {
            "images from the vision cache": self.vision_cache_hits,
            "prompt positions from the prefix cache": self.cached_prompt_tokens,
        }
        told = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
        return told and f"; {told}"


def run_job(
    rows: Rows, targets: Targets, path: Path, job: Job, *, progress: bool | Watcher = False
) -> BulkSummary:
    """Asks about every row, and appends the answers to a file.

    Args:
        rows: what to ask about.
        targets: who answers.
        path: of the file; a run that was ended goes on where it was.
        job: what to ask.
        progress: `True` shows a line on stderr; a function is told of each row.

    Raises:
        InputError: two rows have one id and prompt, or the input cannot be read.
        OptionError: an option is out of range, or the server refuses it for the first
            `FAULTS_IN_A_ROW` questions; the file was begun by another run, or is in use.
        ClientError, EngineError: no server answers any more; what came before is in the file.
        OSError: the file cannot be written.
    """
    options = options_with_keywords(job.options, {})
    settled, _ = resolve_options(targets.contract, options, job.compat)
    with open_output(path, job.to_json(targets)) as output:
        run = _Run(rows, targets, output, job)
        concurrency = targets.concurrency(max(settled.n, settled.num_beams))
        results = map_rows(
            run.ask, run.work(), concurrency=concurrency, progress=progress, cancel=run.cancel
        )
        try:
            for result in results:
                for line in result.unwrap():
                    run.write(line)
        finally:
            results.close()
        return run.summary()


class _Run:
    """The questions of a run, and what became of them."""

    def __init__(self, rows: Rows, targets: Targets, output: Output, job: Job) -> None:
        self._rows, self._targets, self._job = rows, targets, job
        self._output, self._present = output, frozenset(output.present)
        self._held: list[dict[str, Any]] = []
        self._cancelled = threading.Event()
        self._answered = self._failed = self._found = 0
        self._cached: int | None = None

    def work(self) -> _Work:
        """What is left to do: of known length, if that is cheap to know."""
        if not self._rows.is_cheap:
            return _Work(self._left)
        return _CountedWork(self._left, sum(1 for _ in self._left()))

    def _left(self) -> Iterator[dict[str, Any]]:
        """Rows that have questions without a line, as `map_rows` takes them."""
        seen, found = set[bytes](), 0
        for row in self._rows:
            if not self._job.shard.has(row):
                continue
            prompts = self._prompts(row)
            keys = {prompt: key_of(row.id, prompt) for prompt in prompts}
            twice = [prompt for prompt, key in keys.items() if key in seen]
            if twice or len(keys) < len(prompts):
                prompt = (twice or prompts)[0]
                raise InputError(
                    f"two rows have the id {row.id!r} and the prompt {prompt[:80]!r}; give each "
                    "an id of its own"
                )
            seen.update(keys.values())
            left = [prompt for prompt, key in keys.items() if key not in self._present]
            found += len(keys) - len(left)
            if left:
                yield {"image": row, "prompt": "", "prompts": left}
        self._found = found

    def _prompts(self, row: BulkRow) -> Sequence[str]:
        """What is asked about a row. What cannot be asked has a line of its own, too."""
        prompts = prompts_of(row, self._job.prompts)
        if prompts or row.fault is not None:
            return prompts or ("",)
        if self._targets.contract.limits.max_instruction is None:
            return ("",)  # it captions
        raise OptionError(f"the row {row.id!r} has no prompt, and the run has none; give one")

    def ask(self, question: Question) -> list[dict[str, Any]]:
        """The lines of one row. The image is decoded once."""
        row: BulkRow = question.image
        prompts: Sequence[str] = question.arguments["prompts"]
        try:
            if row.fault is not None:
                raise row.fault
            with self._targets.least_busy() as target:
                pixels = pixels_of_request(
                    row.image, self._targets.contract, None, self._job.preprocessing
                )
                options = options_with_keywords(self._job.options, row.options)
                return [self._line(target, row, prompt, pixels, options) for prompt in prompts]
        except IblipError as error:
            return [_failed(row, prompt, error) for prompt in prompts]

    def _line(
        self,
        target: Target,
        row: BulkRow,
        prompt: str,
        pixels: npt.NDArray[np.uint8],
        options: Options,
    ) -> dict[str, Any]:
        if self._cancelled.is_set():
            raise _LeftError
        try:
            answer = target.ask(pixels, prompt, options, self._job.compat)
            return {"id": row.id, "prompt": prompt, **asdict(answer)}
        except IblipError as error:
            return _failed(row, prompt, error)

    def cancel(self) -> None:
        """Ends what is under way."""
        self._cancelled.set()
        self._targets.close()

    def write(self, line: dict[str, Any]) -> None:
        """Writes a line: one of the engine's failures once another question shows that it runs.

        Raises:
            EngineError: so many in a row have failed that it does not.
            OptionError: none has been answered, and so many in a row had wrong options.
            OSError: see `Output.append`.
        """
        faults: list[type[IblipError]] = [EngineError]
        if not (self._answered or self._present):
            faults.append(OptionError)
        kind = line.get("error", {}).get("kind")
        fault = next((one for one in faults if one.__name__ == kind), None)
        if fault:
            self._held.append(line)
            if len(self._held) == FAULTS_IN_A_ROW:
                raise fault(
                    f"{FAULTS_IN_A_ROW} questions in a row failed, and have no line; the last: "
                    f"{line['error']['message']}"
                )
            return
        self._flush()
        self._append(line)

    def _append(self, line: dict[str, Any]) -> None:
        self._output.append(line)
        if "error" in line:
            self._failed += 1
        else:
            self._answered += 1
            if (cached := line["cached_prompt_tokens"]) is not None:
                self._cached = (self._cached or 0) + cached

    def _flush(self) -> None:
        held, self._held = self._held, []
        for line in held:
            self._append(line)

    def summary(self) -> BulkSummary:
        """What has been done, now that all has been asked."""
        self._flush()
        return BulkSummary(
            answered=self._answered,
            failed=self._failed,
            present=self._found,
            vision_cache_hits=self._targets.vision_cache_hits(),
            cached_prompt_tokens=self._cached,
        )


class _LeftError(Exception):
    """The run ends; nobody reads what becomes of this row."""


def _failed(row: BulkRow, prompt: str, error: IblipError) -> dict[str, Any]:
    """The line of a question that has no answer; raises what is no fault of the question."""
    if isinstance(error, ClientError | QueueFullError):
        raise error
    told = {"kind": type(error).__name__, "message": str(error)}
    return {"id": row.id, "prompt": prompt, "error": told}


class _Work:
    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._read())


class _CountedWork(_Work):
    def __init__(self, read: Callable[[], Iterator[dict[str, Any]]], length: int) -> None:
        super().__init__(read)
        self._length = length

    def __len__(self) -> int:
        return self._length
