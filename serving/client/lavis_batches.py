"""The questions that LAVIS's calls ask, and the results they make of the answers; does no I/O.

Source: salesforce/LAVIS, `lavis/models/blip2_models/`. docs/compat.md says where this differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypedDict, TypeVar

from iblip.engines.language_model.option_table import options_of_lavis
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.presets import LAVIS, RANKING, Preset
from iblip.engines.language_model.types import Answer
from iblip.export.errors import InputError, OptionError
from iblip.export.messages import did_you_mean
from iblip.serving.client.compat import preset_of_server
from iblip.serving.client.lavis_prompts import caption_prompt, class_prompt, question_prompt
from iblip.serving.wire.contract import ServerContract

Samples = Mapping[str, Any]
"""`image`: one image or a list; `prompt`, `text_input`, `ocr_tokens`, `choices`, `context`,
`history`, `caption`: as in LAVIS, one for each image."""


class GenerateArguments(TypedDict, total=False):
    """Arguments of `generate`; those left out are as LAVIS has them for the model.

    As in LAVIS, `top_p` (0.9) and `temperature` (1) apply where `use_nucleus_sampling` is true.
    """

    use_nucleus_sampling: bool
    num_beams: int
    max_length: int
    min_length: int
    top_p: float
    repetition_penalty: float
    length_penalty: float
    num_captions: int
    temperature: float


class PredictArguments(TypedDict, total=False):
    """Arguments of `predict_answers`; as in LAVIS, the last three have no effect."""

    num_beams: int
    max_len: int
    min_len: int
    prompt: str
    length_penalty: float
    inference_method: str
    num_ans_candidates: int
    answer_list: Sequence[str] | None


class Texts(list[str]):
    """Texts as LAVIS returns them, `num_captions` for each image.

    Attributes:
        answers: one for each image, with tokens, scores and times.
    """

    answers: tuple[Answer, ...] = ()


class Ranks(list[list[int]]):
    """For each image, the indices of its candidates, the most likely first.

    Attributes:
        answers: one for each image, with every candidate's log-probability.
    """

    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question for the server."""

    image: Any
    prompt: str
    options: GenerationOptions


R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Batch(Generic[R]):
    """The questions of one call, and the function from their answers to its result."""

    questions: Sequence[Question]
    result: Callable[[Sequence[Answer]], R]


def generate_batch(
    contract: ServerContract, samples: Samples, arguments: GenerateArguments
) -> Batch[Texts]:
    """The questions of `generate`.

    Raises:
        OptionError, InputError: an argument or a sample does not fit.
    """
    for name in arguments.keys() - GenerateArguments.__annotations__.keys():
        hint = did_you_mean(name, GenerateArguments.__annotations__)
        raise OptionError(f"LAVIS's generate has no argument {name!r}.{hint}")
    found = preset_of_server(contract, LAVIS, "generate")
    prompts = _each(samples, "prompt", "")
    return _texts_batch(samples, prompts, _with_options(found, _generate(found, arguments)), found)


def answers_batch(
    contract: ServerContract, samples: Samples, arguments: PredictArguments
) -> Batch[Texts]:
    """The questions of `predict_answers`. Errors as of `generate_batch`."""
    if samples.get("apply_lemmatizer"):
        raise InputError("apply_lemmatizer is set, but the client does not lemmatise: leave it out")
    found = preset_of_server(contract, LAVIS, "predict_answers")
    questions = _each(samples, "text_input")
    template = arguments.get("prompt", "")
    known = {name: _each(samples, name, None) for name in ("ocr_tokens", "choices")}
    prompts = [
        question_prompt(
            template, text, ocr_tokens=known["ocr_tokens"][i], choices=known["choices"][i]
        )
        for i, text in enumerate(questions)
    ]
    given = _given("predict_answers", arguments)
    return _texts_batch(samples, prompts, _with_options(found, given), found)


def class_batch(
    contract: ServerContract,
    samples: Samples,
    candidates: Sequence[str] | Sequence[Sequence[str]],
    n_segments: int,
) -> Batch[Ranks]:
    """The questions of `predict_class`. Errors as of `generate_batch`."""
    found = preset_of_server(contract, LAVIS, RANKING)
    if not candidates:
        raise OptionError("candidates is empty; expected at least one text")
    images = _images(samples)
    own = not isinstance(candidates[0], str)
    lists: list[Any] = list(candidates) if own else [candidates] * len(images)
    if len(lists) != len(images):
        raise OptionError(
            f"candidates has {len(lists)} lists; expected one an image, {len(images)}"
        )
    questions = []
    for index, (image, prompt) in enumerate(zip(images, _class_prompts(samples), strict=True)):
        options = found.with_options({"candidates": list(lists[index])})
        if not options.candidates:
            raise OptionError(f"candidates has no text for image {index}; expected at least one")
        if not 1 <= n_segments <= len(options.candidates):
            raise OptionError(
                f"n_segments is {n_segments}; expected 1 to {len(options.candidates)}, the "
                "candidates"
            )
        questions.append(Question(image=image, prompt=prompt, options=options))
    is_mean = contract.build.language_model != "t5"

    def result(answers: Sequence[Answer]) -> Ranks:
        longest = max(answer.prompt_tokens for answer in answers)
        ranks = Ranks()
        for answer in answers:
            before = (answer.prompt_tokens if own else longest) if is_mean else None
            ranks.append(ranks_from_answer(answer, n_segments, before))
        ranks.answers = tuple(answers)
        return ranks

    return Batch(questions=questions, result=result)


def ranks_from_answer(answer: Answer, n_segments: int, before: int | None) -> list[int]:
    """Indices of the candidates, in the order of LAVIS's losses.

    On T5 a loss is the sum over a candidate's tokens. On Vicuna the sum is divided by the padded
    length of the input. Candidates of one segment share that length; segments with different
    longest candidates do not, so the order depends on `n_segments`.

    Args:
        answer: of a ranking.
        n_segments: number of parts in which LAVIS scores the candidates, one after another.
        before: positions of image and prompt, padded; `None` where losses are sums.
    """
    candidates = sorted(answer.ranking, key=lambda candidate: candidate.index)
    size = len(candidates) // n_segments
    losses = []
    for candidate in candidates:
        segment = min(candidate.index // size, n_segments - 1)  # the last one takes the rest
        end = len(candidates) if segment == n_segments - 1 else (segment + 1) * size
        longest = max(len(other.token_ids) for other in candidates[segment * size : end])
        losses.append(-candidate.logprob / (1 if before is None else before + longest - 1))
    return sorted(range(len(candidates)), key=losses.__getitem__)


def _texts_batch(
    samples: Samples, prompts: Sequence[str], options: GenerationOptions, found: Preset
) -> Batch[Texts]:
    tokens = _each(samples, "ocr_tokens", None)
    images = _images(samples)
    # LAVIS looks for a place in the first prompt alone.
    places = "{}" in prompts[0]
    questions = [
        Question(
            image=image,
            prompt=caption_prompt(prompt, words if places else None),
            options=options,
        )
        for image, prompt, words in zip(images, prompts, tokens, strict=True)
    ]

    def result(answers: Sequence[Answer]) -> Texts:
        texts = Texts(
            found.finished(one.text) for answer in answers for one in (answer, *answer.others)
        )
        texts.answers = tuple(answers)
        return texts

    return Batch(questions=questions, result=result)


_NUCLEUS: Mapping[str, Any] = {"temperature": 1.0, "top_p": 0.9}
"""What LAVIS samples with; without `use_nucleus_sampling` it has no effect."""


def _given(call: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of LAVIS's arguments that are options here, by their names here."""
    names = options_of_lavis(call)
    return {names[name]: value for name, value in arguments.items() if name in names}


def _generate(found: Preset, arguments: GenerateArguments) -> Mapping[str, Any]:
    """The same of `generate`, which samples only where it is told to."""
    given = _given("generate", arguments)
    if not arguments.get("use_nucleus_sampling", False):
        return {name: value for name, value in given.items() if name not in _NUCLEUS}
    beams = given.get("num_beams", found.options["num_beams"])
    if beams != 1:
        raise OptionError(
            f"use_nucleus_sampling is true and num_beams {beams}; LAVIS would sample among beams, "
            "which no engine here does: give num_beams 1"
        )
    return {**_NUCLEUS, **given, "num_beams": 1}


def _with_options(found: Preset, given: Mapping[str, Any]) -> GenerationOptions:
    """The preset, overridden by options whose values are as LAVIS has them."""
    changed = {"n": 1, **given}
    if "max_new_tokens" in given:
        changed["max_new_tokens"] = _tokens(found, given["max_new_tokens"])
    # Counted there from the token that an answer begins with; the default, 1, asks for nothing.
    changed["min_new_tokens"] = max(given.get("min_new_tokens", 1) - 1, 0)
    return found.with_options(changed)


def _tokens(found: Preset, length: int) -> int:
    if length <= found.started:
        raise OptionError(
            f"max_length is {length}; LAVIS counts the token that an answer begins with: expected "
            f"{found.started + 1} or more"
        )
    return length - found.started


def _class_prompts(samples: Samples) -> list[str]:
    others = [_each(samples, name, "") for name in ("context", "history", "caption")]
    if "prompt" not in samples:
        raise InputError("samples has no 'prompt'; expected the instruction")
    texts = _each(samples, "text_input", None)
    return [
        class_prompt(prompt, text, context=context, history=history, caption=caption)
        for prompt, text, context, history, caption in zip(
            _each(samples, "prompt"), texts, *others, strict=True
        )
    ]


def _images(samples: Samples) -> list[Any]:
    if "image" not in samples:
        raise InputError(
            f"samples has {', '.join(samples) or 'nothing'}; expected 'image' among them"
        )
    image = samples["image"]
    images = list(image) if isinstance(image, list | tuple) else [image]
    if not images:
        raise InputError("samples has no image; expected one or more")
    return images


_NOTHING = object()


def _each(samples: Samples, name: str, default: Any = _NOTHING) -> list[Any]:
    """The values of one name, one for each image; a single text is used for all images."""
    count = len(_images(samples))
    if name not in samples:
        if default is _NOTHING:
            raise InputError(f"samples has no {name!r}; expected one for each image")
        return [default] * count
    values = samples[name]
    if isinstance(values, str):
        return [values] * count
    if len(values) != count:
        raise InputError(
            f"samples has {len(values)} of {name!r} and {count} images; expected one for each image"
        )
    return list(values)
