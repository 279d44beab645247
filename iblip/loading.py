"""`load`: a build in this process, asked as a client asks a server."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, Unpack

from iblip.building import Build
from iblip.engines.language_model.keywords import GenerationKeywords, Options, options_with_keywords
from iblip.engines.language_model.types import (
    Answer,
    Generation,
    Priority,
    RankedCandidate,
    TextDelta,
)
from iblip.engines.pipeline import Pipeline
from iblip.engines.vision_cache.directory import CacheDirectory, cache_directory
from iblip.export.errors import EngineError, IblipError
from iblip.export.images import ImageSources, Reading, check_reading
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike
from iblip.libraries import installed
from iblip.serving.client.base import Asked, asked_of_row
from iblip.serving.client.compat import resolve_options, trim_answer
from iblip.serving.client.errors import CancelledError
from iblip.serving.client.image_urls import ImageURLs
from iblip.serving.client.mapping import CONCURRENCY, Question, Row, RowResult, map_rows
from iblip.serving.client.messages import GREEDY, pixels_of_request, ranking_options
from iblip.serving.client.patience import Timeout
from iblip.serving.client.tally import Watcher
from iblip.serving.wire.contract import ServerContract
from iblip.serving.wire.parameters import check_priority

if TYPE_CHECKING:
    from iblip.engines.language_model.presets import Preset
    from iblip.serving.client.lavis import Lavis

FOREVER = Timeout(connect=None, total=None)


class Model:
    """A build that runs in this process, with the calls of `Client`. Thread-safe.

        with iblip.load(build) as model:
            print(model.ask("photo.jpg", "What is unusual about this image?").text)
            for text in model.stream("photo.jpg", "Describe the image."):
                print(text, end="", flush=True)

    An image is a path, encoded bytes, an open file, a Pillow image, uint8 `[height, width, 3]` in
    RGB (numpy or torch), a `data:` URL, and an `https:` URL where `load` was told to allow it;
    where the model takes several images, a list of them.
    An image is encoded once, however many questions are asked about it. Calls block: in an event
    loop, run them with `asyncio.to_thread`.

    The engines run until the block ends, `close` is called, or the object is collected.

    Attributes:
        build: what runs.
    """

    def __init__(
        self,
        build: Build,
        *,
        threads: int | None = None,
        device: int = 0,
        image_urls: ImageURLs | bool = False,
        preprocessing: Reading = "viewed",
        vision_cache: CacheDirectory | None = None,
    ) -> None:
        self.build = build
        self._contract = ServerContract.from_manifest(build.manifest)
        self._image_urls = ImageURLs.settled(image_urls)
        self._preprocessing = check_reading(preprocessing)
        self._pipeline = Pipeline(
            build.path,
            threads,
            device=device,
            manifest=build.manifest,
            vision_cache=vision_cache,
        ).__enter__()
        self._finalizer = weakref.finalize(self, self._pipeline.__exit__)

    def close(self) -> None:
        """Ends every answer that is being generated with `EngineError`, and frees the engines.

        Does nothing the second time.
        """
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = "" if self._finalizer.alive else ", closed"
        return f"<Model of {self.build}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model can be neither pickled nor copied: hand its build to the other process, and "
            "load that there"
        )

    def contract(self) -> ServerContract:
        """Image size, limits and identity of the build, as a server of it would state them."""
        return self._contract

    def ask(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: Timeout | float | None = None,
        priority: Priority = "interactive",
        **keywords: Unpack[GenerationKeywords],
    ) -> Answer:
        """Answers one question.

        Args:
            image: see the class.
            prompt: the question or instruction.
            options: how to generate; greedy by default. May be a mapping, by name.
            compat: the original to answer like, `"lavis"`, `"hf"` or `"minigpt4"`: its options,
                which `options` override, and its trimming of the text.
            timeout: seconds for this answer; `None` is no limit. Of a `Timeout`, its `total`.
            priority: where others wait, interactive requests are answered before bulk ones.
            keywords: options by name, such as `max_new_tokens=30`; they override `options`. See
                `GenerationOptions`.

        Raises:
            InputError: an image or the prompt cannot be used, or there are too many images.
            OptionError: an option is unknown or out of range.
            DeadlineError: the answer was not finished in time.
            QueueFullError: too many requests wait.
            EngineError: the engine failed, or the model has been closed.
        """
        asked = _asked(image, prompt, options, keywords, compat, priority, timeout)
        stream, preset = self._start(asked)
        with stream:
            return trim_answer(stream.answer, preset)

    def stream(
        self,
        image: ImageSources,
        prompt: str,
        *,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: Timeout | float | None = None,
        priority: Priority = "interactive",
        **keywords: Unpack[GenerationKeywords],
    ) -> AnswerStream:
        """Yields an answer's text as it is generated; arguments and errors as in `ask`.

        The image is encoded before this returns. The text is not trimmed as `compat` would.
        """
        asked = _asked(image, prompt, options, keywords, compat, priority, timeout)
        return self._start(asked)[0]

    def rank(
        self,
        image: ImageSources,
        prompt: str,
        candidates: Sequence[str],
        *,
        length_penalty: float | None = None,
        timeout: Timeout | float | None = None,
        priority: Priority = "interactive",
    ) -> tuple[RankedCandidate, ...]:
        """Ranks candidate answers, the most likely first; errors as in `ask`.

        Args:
            image: see the class.
            prompt: the question or instruction.
            candidates: 1 to 1000 texts.
            length_penalty: the sum of a candidate's log-probabilities is divided by its number of
                tokens to this power; `None` is 0.
            timeout: seconds for this answer; `None` is no limit. Of a `Timeout`, its `total`.
            priority: see `ask`.
        """
        options = ranking_options(candidates, length_penalty)
        return self.ask(image, prompt, options=options, timeout=timeout, priority=priority).ranking

    def map(
        self,
        rows: Iterable[Row],
        *,
        concurrency: int = CONCURRENCY,
        progress: bool | Watcher = False,
        options: Options = GREEDY,
        compat: str | None = None,
        timeout: Timeout | float | None = None,
        priority: Priority = "bulk",
        **keywords: Unpack[GenerationKeywords],
    ) -> Generator[RowResult[Answer]]:
        """Answers many questions; yields their results in the order of the rows.

            for result in model.map([("a.png", "What is it?"), ("b.png", "And this?")]):
                print(result.text if result.error is None else result.error)

        Args:
            rows: each `(image, prompt)`, or a mapping with `image`, `prompt` and further arguments
                of `ask`, which override those given here; may be a generator of any length.
            concurrency: questions that are asked at the same time, 1 to 1024, but no more than
                may wait in the queue. The engine answers as many at once as it has slots.
            progress: `True` shows a line on stderr; a function is called after each row with a
                `MapProgress`.
            options, compat, timeout, priority, keywords: of every question; see `ask`.

        Raises:
            OptionError: `concurrency` is out of range.
            InputError: `rows` cannot be iterated over. What is wrong with one row is the `error` of
                its result.
        """
        others = _asked((), "", options, keywords, compat, priority, timeout)
        running = _Running()

        def ask(question: Question) -> Answer:
            stream, preset = self._start(asked_of_row(question, others))
            with running.watched(stream):
                return trim_answer(stream.answer, preset)

        most = self._contract.limits.queue
        return map_rows(
            ask,
            rows,
            concurrency=min(concurrency, most) if isinstance(concurrency, int) else concurrency,
            progress=progress,
            cancel=running.cancel,
        )

    @property
    def lavis(self) -> Lavis:
        """LAVIS's calls, with LAVIS's names and defaults."""
        from iblip.serving.client.lavis import Lavis

        return Lavis(self)

    def _start(self, asked: Asked) -> tuple[AnswerStream, Preset | None]:
        """Submits the question; the preset is the one that `compat` names."""
        if not self._finalizer.alive:
            raise EngineError(f"this model of {self.build} has been closed; load another")
        left = Timeout.settled(asked.timeout, FOREVER).total
        deadline = None if left is None else time.monotonic() + left
        options, preset = resolve_options(self._contract, asked.options, asked.compat)
        generation = self._pipeline.submit(
            pixels_of_request(asked.image, self._contract, self._image_urls, self._preprocessing),
            asked.prompt,
            options,
            deadline=deadline,
            priority=check_priority(asked.priority),
        )
        return AnswerStream(generation), preset


def _asked(
    image: ImageSources,
    prompt: str,
    options: Options,
    keywords: Mapping[str, Any],
    compat: str | None,
    priority: Priority,
    timeout: Timeout | float | None,
) -> Asked:
    return Asked(
        image=image,
        prompt=prompt,
        options=options_with_keywords(options, keywords),
        compat=compat,
        priority=priority,
        timeout=timeout,
    )


class AnswerStream:
    """Iterates over the pieces of an answer; joined, the pieces are `answer.text`.

    A context manager: leaving it early cancels the answer, which frees its slot in the engine.
    """

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._events = iter(generation)
        self._pieces: list[str] = []
        self._answer: Answer | None = None
        self._error: IblipError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._error is not None:
            raise self._error
        if self._answer is not None:
            raise StopIteration
        try:
            event = next(self._events)
        except IblipError as error:
            self._error = error
            raise
        if isinstance(event, TextDelta):
            self._pieces.append(event.text)
            return event.text
        if event.finish_reason == "cancelled":
            self._error = CancelledError("the answer was cancelled")
            raise self._error
        self._answer = event
        raise StopIteration

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(self._pieces)

    @property
    def answer(self) -> Answer:
        """The whole answer; reads the stream to its end first."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def cancel(self) -> None:
        """Stops the answer, which frees its slot within a step.

        Iterating further raises `CancelledError`. Does nothing after the end.
        """
        self._generation.cancel()


class _Running:
    """The streams of one map that have not ended, so that leaving it can cancel them."""

    def __init__(self) -> None:
        self._streams: set[AnswerStream] = set()
        self._is_left = False
        self._lock = threading.Lock()

    @contextmanager
    def watched(self, stream: AnswerStream) -> Iterator[None]:
        with self._lock:
            self._streams.add(stream)
            if self._is_left:
                stream.cancel()
        try:
            with stream:
                yield
        finally:
            with self._lock:
                self._streams.discard(stream)

    def cancel(self) -> None:
        with self._lock:
            self._is_left = True
            for stream in self._streams:
                stream.cancel()


@checked
def load(
    build: PathLike,
    *,
    threads: int | None = None,
    device: int = 0,
    image_urls: ImageURLs | bool = False,
    preprocessing: Reading = "viewed",
    vision_cache: PathLike | None = None,
    vision_cache_mib: int | None = None,
) -> Model:
    """Loads a build into this process.

    Args:
        build: a `Build`, or the path of its directory.
        threads: for one operator, on a CPU; `None` takes one for each core this process may use.
        device: the GPU's number, from 0, for the engines that run on one.
        image_urls: whether images may be `https:` addresses: `True`, or `ImageURLs` with what is
            allowed. Read `ImageURLs` before you allow it for addresses that others have written.
        preprocessing: how image files become RGB: `"viewed"`, as they are meant to be seen; or
            `"lavis"`, as LAVIS reads them: without EXIF orientation, transparency dropped, 16 bits
            clipped.
        vision_cache: directory in which encoded images are found again after a restart, and by
            other processes; made if it is missing, once there is something to store.
        vision_cache_mib: most MiB of its files; `None` is 1024.

    Raises:
        OptionError: an argument is of another type or out of range, `preprocessing` is unknown, or
            `vision_cache` cannot be made.
        BuildDirectoryError: it is not a build, or a file of it is missing.
        EngineError: an engine cannot be loaded here.
        IblipError: a library that it runs on is not installed.
    """
    opened = build if isinstance(build, Build) else Build(build)
    with installed("iblip.load"):
        return Model(
            opened,
            threads=threads,
            device=device,
            image_urls=image_urls,
            preprocessing=preprocessing,
            vision_cache=cache_directory(vision_cache, vision_cache_mib),
        )
