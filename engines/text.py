"""Prompts to token ids: for the language model, and for the Q-Former's instruction.

Built on the `tokenizers` library alone, so that a server needs no transformers. What the files in
`text/` say is what is done: special tokens come from each tokenizer's own post-processor, as in
transformers. Knows nothing of graphs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from engines.types import PromptIds
from export.errors import BuildDirectoryError, InputError, OptionError
from export.manifest import Images, Manifest, how_to_raise

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engines.language_model.options import GenerationOptions

MARK = "<ImageHere>"
"""Stands for an image in a prompt to a model that takes images at any place. Source: this and what
further images do to a prompt: Vision-CAIR/MiniGPT-4, `minigpt4/conversation/conversation.py`."""

_PLACE = re.compile(r"\{image\}")

_OWN_PLACE = re.compile(r"(?:<Img>)?\{image\}(?:</Img>)? ?")
"""The template's own place for an image, which a prompt that marks its own does without."""

_TURN = re.compile(r"(?:###Human: |(?:<s>)?\[INST\] )?(?:<Img>)?\{image\}(?:</Img>)?")
"""What one more image adds to a template: there, to upload one is a turn of the conversation."""

SHORTEN = "Shorten it, or let truncation cut it."

INSTRUCTION_LENGTHS = (16, 32, 64, 128, 256, 512)
"""Instructions are padded up to one of these, in tokens: few shapes for the engine to prepare."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a `tokenizers` file, and turns off any padding or truncation written into it.

    Raises:
        BuildDirectoryError: the file is missing or is not a tokenizer.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception for everything
        message = f"{path} cannot be read as a tokenizer ({error}). Build the directory again."
        raise BuildDirectoryError(message) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class PromptTokenizer:
    """A user's prompt to the language model's ids, and the places of its images.

    Attributes:
        tokenizer: the language model's.
        limit: most positions that a prompt may have, its images and special tokens included.
        queries: positions that each image takes of those.
        advice: what to do about a longer one.
        template: what stands around `{prompt}`, and where the `{image}` is.
        images: where further images go.
        most_images: of a prompt.
        image_token_id: the placeholder that transformers puts where the image goes. A prompt that
            spells it would claim a place in the visual prompt, so it is refused.
        may_be_empty: the model captions an image of which nothing is asked.
    """

    tokenizer: Tokenizer
    limit: int
    queries: int = 0
    advice: str = "Shorten it."
    template: str = "{image}{prompt}"
    images: Images = "one"
    most_images: int = 1
    image_token_id: int | None = None
    may_be_empty: bool = False

    @classmethod
    def from_build(
        cls, directory: Path, manifest: Manifest, *, max_length: int | None = None
    ) -> Self:
        """The prompt tokenizer of a build.

        The limit leaves room for one token of answer within `max_length`. T5 has no limit of its
        own; the same bound keeps its memory in hand. A prompt may be empty where the Q-Former reads
        no instruction: BLIP-2 captions so.

        Args:
            directory: of the build.
            manifest: of the same build.
            max_length: positions of a sequence; `None` is what the build says.

        Raises:
            BuildDirectoryError: the tokenizer's file is missing or broken.
        """
        facts = manifest.language_model
        length = max_length or manifest.limits.max_length
        advice = f"max_length is {length} here, of the model's {facts.max_length}. Shorten it"
        if length < facts.max_length:
            advice += f"; {how_to_raise('max_length')}"
        return cls(
            tokenizer=load_tokenizer(directory / manifest.text.tokenizer),
            limit=length - 1,
            queries=facts.num_query_tokens,
            advice=f"{advice}.",
            template=manifest.text.prompt_template,
            images=manifest.text.images,
            most_images=manifest.limits.images,
            image_token_id=facts.image_token_id,
            may_be_empty=manifest.text.qformer_tokenizer is None,
        )

    def __call__(self, prompt: str, images: int = 1) -> PromptIds:
        """The templated prompt, special tokens included (BOS first, or EOS last).

        A special token that the prompt spells out (`</s>`) is that token, as in transformers. Each
        piece of text between images is tokenised on its own, and the special tokens go with the
        first: so the text after an image in front of it has them, as in transformers, and in
        MiniGPT-4 what stands before the image.

        Args:
            prompt: as the user wrote it.
            images: how many it is about.

        Raises:
            InputError: the prompt is empty and may not be, is not text, contains the image token,
                marks other than so many places, or is longer than the limit; or there are no
                images, or too many.
        """
        check_images(images, self.most_images)
        check_prompt(prompt, may_be_empty=self.may_be_empty)
        ids: list[int] = []
        places = []
        special = True
        texts = _texts(self.template, prompt, images, self.images)
        for index, text in enumerate(texts):
            if index:
                places.append(len(ids))
            if text or (special and index == images):
                ids += _encode(self.tokenizer, text, "prompt", special=special)
                special = False
        self._check(ids, images)
        return PromptIds(tuple(ids), tuple(places))

    def _check(self, ids: Sequence[int], images: int) -> None:
        if self.image_token_id is not None and self.image_token_id in ids:
            token = self.tokenizer.id_to_token(self.image_token_id)
            raise InputError(
                f"the prompt contains the image token {token!r}, which stands for the image. "
                "Remove it: the image's place in the prompt is fixed."
            )
        room = self.limit - images * self.queries
        advice = self.advice if images == 1 else f"{images} images take the rest. {self.advice}"
        _check_length("prompt", len(ids), room, advice)


def _texts(template: str, prompt: str, images: int, places: Images) -> list[str]:
    """The texts before the first image, between each two, and after the last.

    Raises:
        InputError: the prompt marks other than so many places.
    """
    if places == "places" and MARK in prompt:
        before, after = _OWN_PLACE.sub("", template).split("{prompt}")
        marked = prompt.split(MARK)
        if len(marked) != images + 1:
            raise InputError(
                f"the prompt has {MARK} {_times(len(marked) - 1)}, and the request"
                f" {images} image{'s' if images > 1 else ''}. Write it once an image, or not at all"
                " to have the images before the text."
            )
        return [before + marked[0], *marked[1:-1], marked[-1] + after]
    unit = _TURN if places == "places" else _PLACE
    pieces = unit.sub(lambda found: found[0] * images, template).split("{image}")
    return [piece.replace("{prompt}", prompt) for piece in pieces]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


@dataclass(frozen=True, kw_only=True)
class InstructionTokenizer:
    """A user's prompt to the Q-Former's instruction.

    Attributes:
        tokenizer: the Q-Former's.
        limit: the longest instruction that its position embeddings hold, in tokens.
        pad_token_id: fills the ids where the mask is 0.
        advice: what to do about an instruction that is too long, for its error.
    """

    tokenizer: Tokenizer
    limit: int
    pad_token_id: int
    advice: str = SHORTEN

    @classmethod
    def from_build(cls, directory: Path, manifest: Manifest) -> Self | None:
        """The instruction tokenizer of a build; `None` where its Q-Former takes no instruction.

        Raises:
            BuildDirectoryError: the tokenizer's file is missing or broken.
        """
        text = manifest.text
        if text.qformer_tokenizer is None:
            return None
        limit, advice = manifest.max_instruction, SHORTEN
        if limit < text.max_instruction:
            advice = (
                f"The engine is built for so many, of the model's {text.max_instruction}; "
                f"{how_to_raise('max_instruction')}. {SHORTEN}"
            )
        return cls(
            tokenizer=load_tokenizer(directory / text.qformer_tokenizer),
            limit=limit,
            pad_token_id=text.qformer_pad_token_id,
            advice=advice,
        )

    def __call__(
        self, *prompts: str, truncation: str = "", max_instruction: int | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """`qformer_input_ids` and `qformer_attention_mask`, int64 `[len(prompts), instruction]`.

        `instruction` is the least of `INSTRUCTION_LENGTHS` that holds the longest prompt, and at
        most the limit. Padding is on the right and masked, so it changes no number.

        Args:
            prompts: as users wrote them.
            truncation: the end, `"left"` or `"right"`, that is cut off a prompt that is too long,
                as a tokenizer's `truncation_side`; empty refuses one.
            max_instruction: tokens that are left of it; `None`, and more than the limit, is the
                limit.

        Raises:
            InputError: a prompt is empty, is not text, or is longer than the limit and not to be
                cut: the Hugging Face processor does not cut unless it is asked to.
            OptionError: `max_instruction` leaves nothing but special tokens.
        """
        if not prompts:
            raise InputError("there is no prompt")
        rows = [self._row(prompt, truncation, max_instruction) for prompt in prompts]
        width = padded_length(max(map(len, rows)), self.limit)
        ids = np.full((len(rows), width), self.pad_token_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
            mask[index, : len(row)] = 1
        return {"qformer_input_ids": ids, "qformer_attention_mask": mask}

    def _row(self, prompt: str, truncation: str, most: int | None) -> list[int]:
        check_prompt(prompt)
        if truncation:
            return self._cut(prompt, truncation, min(most or self.limit, self.limit))
        row = _encode(self.tokenizer, prompt, "instruction")
        _check_length("instruction", len(row), self.limit, self.advice)
        return row

    def _cut(self, prompt: str, side: str, most: int) -> list[int]:
        """Its ids, at most so many: text is cut off at that side, special tokens stay."""
        special = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if most <= special:
            raise OptionError(
                f"max_instruction is {most}; the tokenizer adds {special} special tokens to any "
                f"instruction: wanted {special + 1} or more"
            )
        text = _encoding(self.tokenizer, prompt, "instruction", special=False)
        text.truncate(most - special, direction=side)
        return list(self.tokenizer.post_process(text).ids)


def check_images(count: int, most: int) -> None:
    """Refuses a request of no image, or of more than there may be.

    Raises:
        InputError: naming both numbers.
    """
    if not 1 <= count <= most:
        wanted = "1" if most == 1 else f"1 to {most}"
        raise InputError(
            f"the request has {count} images; wanted {wanted}. Where a model takes several, "
            f"{how_to_raise('max_images')}."
        )


def check_prompt(prompt: str, *, may_be_empty: bool = False) -> None:
    """Refuses what is no question at all.

    Raises:
        InputError: the prompt is not a string, or has nothing but white space in it and may not be
            so.
    """
    if not isinstance(prompt, str):
        raise InputError(f"the prompt is a {type(prompt).__name__}; wanted text")
    if not prompt.strip() and not may_be_empty:
        raise InputError("the prompt is empty. Ask something, such as 'What is in the image?'")


def instruction_tensors(
    tokenizer: InstructionTokenizer | None, options: GenerationOptions, *prompts: str
) -> dict[str, npt.NDArray[Any]]:
    """What the Q-Former reads of some prompts, cut as the options say; nothing where it reads none.

    Raises:
        InputError: see `InstructionTokenizer`.
        OptionError: see `InstructionTokenizer`; or `truncation` is given, and no instruction read.
    """
    if tokenizer is not None:
        return tokenizer(
            *prompts, truncation=options.truncation, max_instruction=options.max_instruction
        )
    if options.truncation:
        raise OptionError(
            f"truncation is {options.truncation!r}; it cuts the Q-Former's instruction, and this "
            "model's Q-Former reads none. Leave it out."
        )
    return {}


def padded_length(length: int, limit: int) -> int:
    """The least of `INSTRUCTION_LENGTHS` that holds `length` tokens, and at most `limit`."""
    fitting = (size for size in INSTRUCTION_LENGTHS if size >= length)
    return min(next(fitting, limit), limit)


def _encode(tokenizer: Tokenizer, text: str, what: str, *, special: bool = True) -> list[int]:
    return list(_encoding(tokenizer, text, what, special=special).ids)


def _encoding(tokenizer: Tokenizer, text: str, what: str, *, special: bool) -> Any:
    encode: Callable[..., Any] = tokenizer.encode
    try:
        return encode(text, add_special_tokens=special)
    except (TypeError, UnicodeError) as error:  # a lone surrogate cannot be written as UTF-8
        raise InputError(f"the {what} is not valid Unicode text ({error})") from error


def _check_length(what: str, found: int, limit: int, advice: str) -> None:
    if found > limit:
        raise InputError(f"the {what} has {found} tokens; at most {limit} fit. {advice}")


def answers_from_text(
    tokenizer: Tokenizer, texts: Sequence[str], *, closed: bool
) -> list[tuple[int, ...]]:
    """The token ids of each text as an answer, which begins as a word after a space does.

    LLaMA's and T5's tokenizers mark the beginning of any text so. For those that do not, as OPT's,
    the space is put before it.

    Args:
        tokenizer: the language model's.
        texts: as the user wrote them.
        closed: with the special tokens that the tokenizer puts round a text: T5's closing one.
    """
    marked = tokenizer.encode("a", add_special_tokens=False).tokens[0].startswith("▁")
    spelt = (text if marked or text[0].isspace() else f" {text}" for text in texts)
    return [tuple(tokenizer.encode(text, add_special_tokens=closed).ids) for text in spelt]


def words_from_text(tokenizer: Tokenizer, words: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each word, at the beginning of a text and after a space, without repeats."""
    spelt = (text for word in words for text in (word, f" {word}"))
    ids = (tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in spelt)
    return [found for found in dict.fromkeys(ids) if found]
