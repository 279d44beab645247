"""Tokenises a user's prompt for the language model, and finds the places of its images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from iblip.engines.text.checks import check_images, check_prompt
from iblip.engines.text.tokens import check_length, encode, load_tokenizer
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Images, Manifest, how_to_raise
from iblip.export.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


MARK = "<ImageHere>"
"""Marks the place of an image in a prompt to a model that takes images at any place. Source, also
for what further images add to a prompt: Vision-CAIR/MiniGPT-4,
`minigpt4/conversation/conversation.py`."""

_PLACE = re.compile(r"\{image\}")

_OWN_PLACE = re.compile(r"(?:<Img>)?\{image\}(?:</Img>)? ?")
"""The template's own place for an image, which is removed if the prompt marks its own."""

_TURN = re.compile(r"(?:###Human: |(?:<s>)?\[INST\] )?(?:<Img>)?\{image\}(?:</Img>)?")
"""What each further image adds to a template: in MiniGPT-4 every upload is a turn of its own."""


@dataclass(frozen=True, kw_only=True)
class PromptTokenizer:
    """Tokenises a user's prompt for the language model, and finds the places of its images.

    Attributes:
        tokenizer: the language model's.
        limit: the most positions that a prompt may have, its images and special tokens included.
        queries: positions that each image takes of those.
        advice: what to do about a longer prompt, for its error.
        template: the text around `{prompt}` and `{image}`.
        images: where further images go.
        most_images: the most images that a prompt may have.
        image_token_id: the placeholder that transformers puts in the image's place. A prompt that
            spells it would claim a place in the visual prompt, so it is refused.
        may_be_empty: whether the prompt may be empty, for a model that then captions the image.
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

        The limit leaves room for one token of answer within `max_length`. T5's positions have no
        end; the bound that its build chose limits its memory. A prompt may be empty if the Q-Former
        reads no instruction: BLIP-2 then captions the image.

        Args:
            directory: of the build.
            manifest: of the same build.
            max_length: positions of a sequence; `None` is the build's own.

        Raises:
            BuildDirectoryError: the tokenizer's file is missing or broken.
        """
        facts = manifest.language_model
        length = max_length or manifest.limits.max_length
        own = "" if facts.is_encoder_decoder else f", of the model's {facts.max_length}"
        advice = f"max_length is {length} here{own}. Shorten it"
        if length < facts.most_positions:
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
        piece of text between images is tokenised by itself, and the first that is not empty gets
        the special tokens: the text after a leading image, as in transformers, or in MiniGPT-4 the
        text before the image.

        Args:
            prompt: as the user wrote it.
            images: the number of images that it is about.

        Raises:
            InputError: the prompt is empty and may not be, is not text, contains the image token,
                marks another number of places than there are images, or is longer than the limit;
                or there are no images, or too many.
        """
        check_images(images, self.most_images)
        check_prompt(prompt, may_be_empty=self.may_be_empty)
        ids: list[int] = []
        places = []
        special = True
        texts = _split_at_images(self.template, prompt, images, self.images)
        for index, text in enumerate(texts):
            if index:
                places.append(len(ids))
            if text or (special and index == images):
                ids += encode(self.tokenizer, text, "prompt", special=special)
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
        check_length("prompt", len(ids), room, advice)


def _split_at_images(template: str, prompt: str, images: int, places: Images) -> list[str]:
    """The texts before the first image, between each two, and after the last.

    Raises:
        InputError: the prompt marks another number of places than there are images.
    """
    if places == "places" and MARK in prompt:
        before, after = _OWN_PLACE.sub("", template).split("{prompt}")
        marked = prompt.split(MARK)
        if len(marked) != images + 1:
            raise InputError(
                f"the prompt has {MARK} {_format_times(len(marked) - 1)}, and the request"
                f" {images} image{'s' if images > 1 else ''}. Write it once per image, or not at"
                " all to have the images before the text."
            )
        return [before + marked[0], *marked[1:-1], marked[-1] + after]
    unit = _TURN if places == "places" else _PLACE
    pieces = unit.sub(lambda match: match[0] * images, template).split("{image}")
    return [piece.replace("{prompt}", prompt) for piece in pieces]


def _format_times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
