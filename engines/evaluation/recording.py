"""Records a build's answers on a CPU, so that `iblip prove` can compare those of another device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.evaluation.asking import first_tokens, ranking, submit
from iblip.engines.evaluation.texts import WAYS as COMPARED
from iblip.engines.pipeline import Pipeline
from iblip.export.artifact.references import AnswerReference
from iblip.export.errors import InputError, OptionError
from iblip.export.examples import Example
from iblip.export.images import pixels_from_image
from iblip.export.progress import Progress

MOST = 16
"""Most questions whose answers are recorded."""

FEWEST = 4
"""Questions that are recorded however large their images are."""

PIXEL_BYTES = 2**20
"""Bytes of images that are recorded, unless `FEWEST` of them are more."""

NOISE_TOKENS = 16
"""Most tokens of an answer about a made-up image."""

NOISE_PROMPT = "What is in the image?"

FIRST = 20
"""How many of the most likely first tokens are recorded: vLLM tells no more."""

CANDIDATES = 8
"""Most candidates of a recorded ranking."""

OTHERWISE = ("yes", "no")
"""Candidates where the answers to the questions are fewer than two."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One row of `WAYS`.

    Attributes:
        questions: how many of the questions are asked this way.
        images: how many images a question has.
        options: fields of `GenerationOptions`; those of a ranking get candidates, too.
        ranks: whether it is a ranking.
    """

    questions: int
    images: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    ranks: bool = False


WAYS: Mapping[str, Way] = {
    "text": Way(questions=MOST, options={"logprobs": FIRST}),
    "beams": Way(questions=4, options=COMPARED["beams"]),
    "ranking": Way(questions=4, ranks=True),
    "images": Way(questions=2, images=2),
}
"""How the questions are asked, by name."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about an image.

    Attributes:
        name: of the example.
        pixels: uint8 `[height, width, 3]`, as the model takes them.
        prompt: the question.
    """

    name: str
    pixels: Array
    prompt: str


@dataclass
class AnswerRecorder:
    """Asks a build some questions, and keeps the answers.

    Attributes:
        examples: to choose from; without any, images are made up.
        progress: shows the stage.
        pixels: the questions' images, `[images, height, width, 3]`, once it has been called.
        answers: once it has been called.
    """

    examples: Sequence[Example]
    progress: Progress
    pixels: Array = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))
    answers: list[AnswerReference] = field(default_factory=list)

    def __call__(self, pipeline: Pipeline) -> None:
        """Asks a build that is open on ONNX Runtime's CPU provider."""
        questions = self._choose(pipeline)
        self.pixels = np.stack([question.pixels for question in questions])
        most = {} if self.examples else {"max_new_tokens": NOISE_TOKENS}
        title = "record answers for `iblip prove`"
        with self.progress.stage(title, len(WAYS), "ways") as advance:
            for name, way in WAYS.items():
                if way.images <= pipeline.manifest.limits.images:
                    options = {**way.options, **({} if way.ranks else most)}
                    if way.ranks:
                        options["candidates"] = self._candidates()
                    self.answers += self._ask(pipeline, name, way, questions, options)
                advance(1)

    def _choose(self, pipeline: Pipeline) -> list[Question]:
        """Examples spread over all of them, or made-up images."""
        settings = pipeline.manifest.preprocessing
        shape = (settings.height, settings.width, 3)
        count = min(MOST, max(FEWEST, PIXEL_BYTES // int(np.prod(shape))))
        if not self.examples:
            random = np.random.default_rng(0)
            return [
                Question(
                    name=f"noise-{index}",
                    pixels=random.integers(0, 256, shape, dtype=np.uint8),
                    prompt=NOISE_PROMPT,
                )
                for index in range(FEWEST)
            ]
        last = len(self.examples) - 1
        at = np.linspace(0, last, min(count, last + 1)).round().astype(int)
        return [
            Question(
                name=example.name,
                pixels=pixels_from_image(example.image, settings),
                prompt=example.prompt,
            )
            for example in (self.examples[index] for index in at)
        ]

    def _candidates(self) -> tuple[str, ...]:
        texts = dict.fromkeys(answer.text for answer in self.answers if answer.text.strip())
        return tuple(texts)[:CANDIDATES] if len(texts) > 1 else OTHERWISE

    def _ask(
        self,
        pipeline: Pipeline,
        name: str,
        way: Way,
        questions: Sequence[Question],
        options: Mapping[str, Any],
    ) -> list[AnswerReference]:
        answers = []
        for index, question in enumerate(questions[: way.questions]):
            images = tuple((index + further) % len(questions) for further in range(way.images))
            try:
                answer = submit(pipeline, self.pixels, images, question.prompt, options).result()
            except (InputError, OptionError):  # several images may not fit into its positions
                continue
            answers.append(
                AnswerReference(
                    way=name,
                    name=question.name,
                    prompt=question.prompt,
                    images=images,
                    options=dict(options),
                    token_ids=answer.token_ids,
                    text=answer.text,
                    first=first_tokens(answer),
                    ranking=ranking(answer),
                )
            )
        return answers
