"""A request as it arrived: what is looked at, and refused, before anything is computed for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from typing import Any

import numpy as np
import numpy.typing as npt

from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest, Priority
from iblip.engines.language_model.waiting import BULK_PATIENCE_S
from iblip.engines.text.checks import check_images, check_prompt
from iblip.engines.text.instructions import InstructionTokenizer, instruction_tensors
from iblip.export.artifact.manifest import how_to_raise
from iblip.export.errors import InputError, OptionError
from iblip.export.images import Reading
from iblip.serving.steps.policy import Policy
from iblip.serving.wire.contract import Limits
from iblip.serving.wire.names import CALL_KEY, IMAGE, PACKED, PIXELS, PREPROCESSING, PROMPT
from iblip.serving.wire.parameters import (
    key_from_parameters,
    options_from_parameters,
    parameters_from_json,
    priority_from_parameters,
    reading_from_parameters,
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
        pixels: uint8 `[images, height, width, 3]`; no images while they are `encoded`.
        encoded: the images as they were sent; empty once there are `pixels`.
        reading: how encoded images become RGB.
        options: how to generate.
        stream: whether text is sent as it is written.
        tokens: most tokens of all its answers; a candidate of a ranking counts as one.
        arrived: `time.monotonic()` seconds.
        deadline: likewise; `None` is no deadline.
        caller: who asks; `None` where callers are not told apart.
        cancel_key: the secret by which it can be cancelled; empty if it has none.
        priority: before which others it is answered.
    """

    prompt: str
    pixels: npt.NDArray[np.uint8]
    encoded: tuple[bytes, ...] = ()
    reading: Reading = "viewed"
    options: GenerationOptions = field(default_factory=GenerationOptions)
    stream: bool = True
    tokens: int = 1
    arrived: float = 0.0
    deadline: float | None = None
    caller: str | None = None
    cancel_key: str = ""
    priority: Priority = "interactive"

    @property
    def images(self) -> int:
        """How many images it has."""
        return len(self.encoded) or len(self.pixels)

    def decoded(self, pixels: npt.NDArray[np.uint8]) -> Question:
        """The same question with pixels in place of its encoded images."""
        return replace(self, pixels=pixels, encoded=())

    @property
    def is_late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def is_urgent(self) -> bool:
        """Whether it goes before bulk: it is interactive, or has waited long enough."""
        waited_s = time.monotonic() - self.arrived
        return self.priority == "interactive" or waited_s >= BULK_PATIENCE_S

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
        policy: what the operator has decided.
        most_encoded: bytes of one encoded image, as it is sent.
        call_key: shows that the one-answer model is the caller.
    """

    limits: Limits
    tokenizer: InstructionTokenizer | None
    policy: Policy = field(default_factory=Policy)
    most_encoded: int = 16 << 20
    call_key: str = ""

    def __call__(
        self,
        images: Mapping[str, npt.NDArray[Any]],
        prompt: npt.NDArray[Any],
        parameters: str,
        timeout_us: int,
    ) -> Question:
        """The question. Costs a look at sizes and options: nothing is tokenised or decoded.

        Args:
            images: `PIXELS`, uint8 `[images, height, width, 3]`, which are copied, because Triton
                reuses the memory; or `IMAGE`, BYTES `[images]` as Triton hands them over.
            prompt: see `prompt_from_tensor`.
            parameters: of the request, a JSON object.
            timeout_us: of the request, in microseconds; 0 is none.

        Raises:
            InputError: the prompt is empty or too long, or there are too many images or none.
            OptionError: an option is misspelt, out of range or too large.
        """
        arrived = time.monotonic()
        given = self._parameters(parameters)
        caller = self._caller(given)
        reading = reading_from_parameters(given)
        pixels, encoded = self._images(images, reading)
        text = prompt_from_tensor(prompt, self.limits.max_prompt_bytes)
        check_prompt(text, may_be_empty=self.tokenizer is None)
        options = options_from_parameters(given)
        tokens = self._most_tokens(options)
        self._check_logprobs(options, tokens)
        self._check_tokens(tokens)
        seconds = seconds_from_timeout(timeout_us) or self.policy.default_timeout_s
        return Question(
            prompt=text,
            pixels=pixels,
            encoded=encoded,
            reading=reading or "viewed",
            options=options,
            stream=stream_from_parameters(given),
            tokens=tokens,
            arrived=arrived,
            deadline=None if seconds is None else arrived + seconds,
            caller=caller,
            cancel_key=key_from_parameters(given),
            priority=priority_from_parameters(given),
        )

    def inputs(self, question: Question) -> Tensors:
        """What the chain that encodes the images takes: them, and a row of instruction for each.

        Raises:
            InputError: the instruction is longer than the Q-Former takes.
            OptionError: `truncation` does not go with this model.
        """
        instruction = self.instruction(question)
        rows = {name: np.repeat(ids, question.images, 0) for name, ids in instruction.items()}
        return {PIXELS: question.pixels, **rows}

    def instruction(self, question: Question) -> Tensors:
        """What the Q-Former reads of the prompt, int64 `[1, instruction]` each; raises likewise."""
        return instruction_tensors(
            self.tokenizer,
            question.prompt,
            truncation=question.options.truncation,
            max_instruction=question.options.max_instruction,
        )

    def _images(
        self, images: Mapping[str, npt.NDArray[Any]], reading: Reading | None
    ) -> tuple[npt.NDArray[np.uint8], tuple[bytes, ...]]:
        """The pixels, or no pixels and the encoded images."""
        if len(images) != 1:
            found = f"both {IMAGE} and {PIXELS}" if images else "no image"
            raise InputError(f"the request has {found}; expected {IMAGE} (files) or {PIXELS}")
        if PIXELS in images:
            pixels = images[PIXELS]
            check_images(len(pixels), self.limits.images)
            if reading is not None:
                raise OptionError(f"{PREPROCESSING} is given with {PIXELS}; expected {IMAGE}")
            return np.array(pixels), ()
        sent = images[IMAGE].reshape(-1)
        check_images(len(sent), self.limits.images)
        encoded = tuple(one if isinstance(one, bytes) else str(one).encode() for one in sent)
        longest = max(map(len, encoded))
        if longest > self.most_encoded:
            raise InputError(
                f"an image has {longest} bytes; expected at most {self.most_encoded}. Make it "
                "smaller; `image_bytes` in instructblip/config.pbtxt raises it."
            )
        return np.empty((0, 0, 0, 3), np.uint8), encoded

    def _parameters(self, text: str) -> dict[str, Any]:
        """The request's parameters; those that the one-answer model has packed, if it asks."""
        most = self.limits.max_option_bytes
        given = parameters_from_json(text, PACKING * most)
        key = given.get(CALL_KEY)
        if PACKED in given and isinstance(key, str) and compare_digest(key, self.call_key):
            del given[CALL_KEY]
            parameters_from_json(str(given[PACKED]), most)
            return unpacked(given)
        return parameters_from_json(text, most)

    def _caller(self, given: dict[str, Any]) -> str | None:
        """Takes out of the parameters who asks. All who do not say so are one caller."""
        wanted = self.policy.caller_header.lower()
        if not wanted:
            return None
        names = [name for name in given if name.lower() == wanted]  # HTTP keeps a header's case
        if len(names) > 1:
            raise OptionError(f"{names[0]} is given {len(names)} times; expected it once")
        return str(given.pop(names[0])) if names else ""

    def _most_tokens(self, options: GenerationOptions) -> int:
        limits = self.limits
        wanted = options.max_new_tokens or options.max_length or limits.default_max_new_tokens
        answers = max(options.n, options.num_beams)
        return len(options.candidates) or min(wanted, limits.max_length) * answers

    def _check_logprobs(self, options: GenerationOptions, tokens: int) -> None:
        """Refuses an answer whose end alone would keep the others waiting."""
        if options.logprobs is None:
            return
        pairs, most = tokens * (options.logprobs + 1), self.limits.max_logprobs
        if pairs > most:
            raise OptionError(
                f"logprobs is {options.logprobs}, of {tokens} tokens: {pairs} log-probabilities; "
                f"expected at most {most}. Lower logprobs, max_new_tokens or n."
            )

    def _check_tokens(self, tokens: int) -> None:
        """Refuses what no caller may ever have under way."""
        most = self.policy.max_caller_tokens
        if most is not None and tokens > most:
            raise OptionError(
                f"the request may generate {tokens} tokens; a caller may have at most {most} under "
                "way. Lower max_new_tokens, n or num_beams."
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
    if len(data) > most_bytes:
        raise InputError(
            f"the {PROMPT} has {len(data)} bytes; expected at most {most_bytes}. Shorten it; "
            f"{how_to_raise('max_prompt_bytes')}."
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"the {PROMPT} is not UTF-8: {error}") from error
