"""A request as it arrived: what is looked at, and refused, before anything is computed for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest, Priority
from iblip.engines.text.checks import check_images, check_prompt
from iblip.engines.text.instructions import InstructionTokenizer, instruction_tensors
from iblip.export.artifact.manifest import how_to_raise
from iblip.export.errors import InputError, OptionError
from iblip.export.system.json_text import parse_json
from iblip.serving.wire import (
    CANCEL_KEY,
    PACKED,
    PIXELS,
    PROMPT,
    Limits,
    options_from_parameters,
    priority_from_parameters,
    seconds_from_timeout,
    stream_from_parameters,
    unpacked,
)

PACKING = 6
"""How much longer, at most, JSON gets inside a string of JSON."""

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A request that may be answered.

    Attributes:
        prompt: as the user wrote it.
        inputs: of the chain that encodes its images: uint8 `pixels` `[images, height, width, 3]`,
            and what the Q-Former reads of the prompt, a row for each image.
        options: how to generate.
        stream: whether text is sent as it is written.
        tokens: most tokens of all its answers.
        arrived: `time.monotonic()` seconds.
        deadline: likewise; `None` is no deadline.
        caller: who asks, where the operator has that told apart; empty otherwise.
        cancel_key: the secret by which it can be cancelled; empty if it has none.
        priority: before which others it is answered.
    """

    prompt: str
    inputs: Tensors
    options: GenerationOptions = field(default_factory=GenerationOptions)
    stream: bool = True
    tokens: int = 1
    arrived: float = 0.0
    deadline: float | None = None
    caller: str = ""
    cancel_key: str = ""
    priority: Priority = "interactive"

    @property
    def seconds_left(self) -> float | None:
        """Seconds until its deadline, possibly below 0; `None` where there is none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def request(self, visual_prompt: npt.NDArray[Any]) -> GenerationRequest:
        """What the language model is asked, now that the images are encoded."""
        return GenerationRequest(
            prompt=self.prompt,
            visual_prompt=visual_prompt,
            options=self.options,
            deadline=self.deadline,
            vision_s=time.monotonic() - self.arrived,
            priority=self.priority,
        )


@dataclass(frozen=True, kw_only=True)
class QuestionReader:
    """Reads requests, and refuses those that cannot be answered; sizes come first.

    Attributes:
        limits: what a request may be.
        tokenizer: of the Q-Former's instruction; `None` if it takes none.
        default_timeout_s: seconds for a request that brings no `timeout`; `None` is no limit.
        caller_parameter: the request parameter that tells callers apart, such as a header that
            Triton forwards; empty tells none apart.
    """

    limits: Limits
    tokenizer: InstructionTokenizer | None
    default_timeout_s: float | None = None
    caller_parameter: str = ""

    def __call__(
        self,
        pixels: npt.NDArray[np.uint8],
        prompt: npt.NDArray[Any],
        parameters: str,
        timeout_us: int,
    ) -> Question:
        """The question.

        Args:
            pixels: uint8 `[images, height, width, 3]`; copied, because Triton reuses the memory.
            prompt: see `prompt_from_tensor`.
            parameters: of the request, a JSON object.
            timeout_us: of the request, in microseconds; 0 is none.

        Raises:
            InputError: the prompt is empty or too long, or there are too many images or none.
            OptionError: an option is misspelt, out of range or too large.
        """
        arrived = time.monotonic()
        given = self._parameters(parameters)
        check_images(len(pixels), self.limits.images)
        text = prompt_from_tensor(prompt, self.limits.max_prompt_bytes)
        check_prompt(text, may_be_empty=self.tokenizer is None)
        caller = self._caller(given)
        options = options_from_parameters(given)
        self._check_logprobs(options)
        instruction = instruction_tensors(
            self.tokenizer,
            text,
            truncation=options.truncation,
            max_instruction=options.max_instruction,
        )
        rows = {name: np.repeat(ids, len(pixels), axis=0) for name, ids in instruction.items()}
        seconds = seconds_from_timeout(timeout_us) or self.default_timeout_s
        return Question(
            prompt=text,
            inputs={PIXELS: np.array(pixels), **rows},
            options=options,
            stream=stream_from_parameters(given),
            tokens=self._most_tokens(options),
            arrived=arrived,
            deadline=None if seconds is None else arrived + seconds,
            caller=caller,
            cancel_key=str(given.get(CANCEL_KEY, "")),
            priority=priority_from_parameters(given),
        )

    def _caller(self, given: dict[str, Any]) -> str:
        """Takes out of the parameters what tells callers apart; HTTP keeps the case of headers."""
        wanted = self.caller_parameter.lower()
        names = [name for name in given if wanted and name.lower() == wanted]
        return str([given.pop(name) for name in names][-1]) if names else ""

    def _parameters(self, text: str) -> dict[str, Any]:
        """The request's parameters; those that the one-answer model has packed, if it has."""
        name, most = "JSON of the request's parameters", self.limits.max_option_bytes
        check_bytes(name, len(text), PACKING * most, OptionError)
        given = parse_json(text or "{}")
        check_bytes(name, len(str(given.get(PACKED, text))), most, OptionError)
        return unpacked(given)

    def _most_tokens(self, options: GenerationOptions) -> int:
        limits = self.limits
        wanted = options.max_new_tokens or options.max_length or limits.default_max_new_tokens
        return min(wanted, limits.max_length) * max(options.n, options.num_beams)

    def _check_logprobs(self, options: GenerationOptions) -> None:
        """Refuses an answer whose end alone would keep the others waiting."""
        if options.logprobs is None:
            return
        pairs, most = self._most_tokens(options) * (options.logprobs + 1), self.limits.max_logprobs
        if pairs > most:
            raise OptionError(
                f"logprobs is {options.logprobs}, of {self._most_tokens(options)} tokens: {pairs} "
                f"log-probabilities; expected at most {most}. Lower logprobs, max_new_tokens or n."
            )


def prompt_from_tensor(tensor: npt.NDArray[Any], most_bytes: int) -> str:
    """The text of a BYTES tensor of one element, as Triton hands it over (object dtype).

    Args:
        tensor: of any shape.
        most_bytes: it may have.

    Raises:
        InputError: not one element, too long, or not UTF-8.
    """
    if tensor.size != 1:
        raise InputError(f"the {PROMPT} has shape {list(tensor.shape)}; expected one string, [1]")
    data = tensor.reshape(-1)[0]
    data = data if isinstance(data, bytes) else str(data).encode()
    check_bytes(PROMPT, len(data), most_bytes, InputError)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the {PROMPT} is not UTF-8: {error}") from error


def check_bytes(
    name: str, size: int, most: int, kind: type[InputError] | type[OptionError]
) -> None:
    """Raises an error of that kind where something has more bytes than it may."""
    if size > most:
        limit = "max_prompt_bytes" if kind is InputError else "max_option_bytes"
        raise kind(
            f"the {name} has {size} bytes; expected at most {most}. Send less; "
            f"{how_to_raise(limit)}."
        )
