"""Messages as a prompt and images: one question, or MiniGPT-4's dialogue.

MiniGPT-4 was made for conversations: earlier turns go into its prompt as its own `conversation.py`
writes them. InstructBLIP and BLIP-2 answer one question about images, so earlier turns are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iblip.engines.text.prompts import MARK
from iblip.export.messages import kind_of, shown
from iblip.serving.gateway.errors import ParameterError
from iblip.serving.wire.contract import ServerContract

OPENINGS = {"###Human: ": "###Human: ", "[INST] ": "<s>[INST] "}
"""What begins a human's turn in MiniGPT-4's dialogues, on Vicuna and on LLaMA-2, by what is in the
template: one with `[INST]` alone leaves the first `<s>` to the tokenizer. Source:
Vision-CAIR/MiniGPT-4, `minigpt4/conversation/conversation.py`."""

IMAGE = f"<Img>{MARK}</Img> "
"""An image before the text of a turn, as `Chat.upload_img` and `Chat.ask` write it."""

DETAILS = ("auto", "low", "high", None)
"""Accepted without effect: images are resized to the model's size."""

NO_SYSTEM = (
    "these models have no instructions apart from the question: what MiniGPT-4 is told before a "
    "conversation is fixed. Write them into the user's message."
)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side said.

    Attributes:
        role: `user` or `assistant`.
        text: all of it.
        images: addresses.
    """

    role: str
    text: str
    images: tuple[str, ...] = ()


def turns_from_messages(messages: Any) -> tuple[Turn, ...]:
    """The turns of a conversation; messages of a user that follow each other are one turn.

    Raises:
        ParameterError: a message is none, or has a part or a role that these models do not know; or
            the turns do not alternate, from a user's to a user's.
    """
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else shown(messages)
        raise ParameterError(f"messages is {found}; expected a list of messages", "messages")
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        turn = _turn(message, f"messages[{index}]")
        if turns and turns[-1].role == turn.role:
            turns[-1] = _joined(turns[-1], turn, f"messages[{index}].role")
        else:
            turns.append(turn)
    for index, place in ((0, "messages[0].role"), (-1, f"messages[{len(messages) - 1}].role")):
        if turns[index].role != "user":
            raise ParameterError("the first and the last message must be the user's", place)
    return tuple(turns)


def prompt_from_turns(
    turns: Sequence[Turn], contract: ServerContract
) -> tuple[str, tuple[str, ...]]:
    """The prompt for a server, and the addresses of its images in order.

    Raises:
        ParameterError: the model answers one question at a time, and there are earlier turns.
    """
    images = tuple(image for turn in turns for image in turn.images)
    if len(turns) == 1:
        return turns[0].text, images
    template = contract.prompt_template
    opening = next((one for sign, one in OPENINGS.items() if sign in template), None)
    if opening is None:
        raise ParameterError(
            f"messages has {len(turns)} turns; {contract.build.name} ({contract.build.family}) "
            "answers one question at a time. Send the last question alone, with its images.",
            "messages",
        )
    closing = template.rpartition("{prompt}")[2]
    is_first = len(images) == len(turns[0].images) == 1  # its place is that of the template
    marked = any(MARK in turn.text for turn in turns)
    texts = [turn.text if is_first and not marked else _with_images(turn) for turn in turns]
    parts = [texts[0]]
    for turn, text in zip(turns[1:], texts[1:], strict=True):
        parts += [closing if turn.role == "assistant" else opening, text]
    return "".join(parts), images


def _with_images(turn: Turn) -> str:
    """The text of a turn with the places of its images, unless it marks them itself."""
    return turn.text if MARK in turn.text else IMAGE * len(turn.images) + turn.text


def _joined(first: Turn, second: Turn, place: str) -> Turn:
    if first.role != "user":
        raise ParameterError("two messages of the assistant follow each other", place)
    text = "\n".join(text for text in (first.text, second.text) if text)
    return Turn(role="user", text=text, images=first.images + second.images)


def _turn(message: Any, place: str) -> Turn:
    if not isinstance(message, dict):
        raise ParameterError(f"{place} is {shown(message)}; expected an object", place)
    role = message.get("role")
    if role in ("system", "developer"):
        raise ParameterError(f"{place}.role is {role}: {NO_SYSTEM}", f"{place}.role")
    if role not in ("user", "assistant"):
        raise ParameterError(
            f"{place}.role is {shown(role)}; expected 'user' or 'assistant'", f"{place}.role"
        )
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, [], ""):
            raise ParameterError(
                f"{place} has {shown(name)}, which these models do not know",
                f"{place}.{name}"[:200],
            )
    parts = list(_parts(message.get("content"), f"{place}.content"))
    images = tuple(url for kind, url in parts if kind == "image")
    if images and role == "assistant":
        raise ParameterError(f"{place} is the assistant's and has an image", f"{place}.content")
    return Turn(
        role=role, text="\n".join(text for kind, text in parts if kind == "text"), images=images
    )


def _parts(content: Any, place: str) -> Iterator[tuple[str, str]]:
    """The kind and the text or address of each part."""
    if isinstance(content, str):
        yield "text", content
        return
    if not isinstance(content, list):
        raise ParameterError(
            f"{place} is {kind_of(content)}; expected text, or a list of parts", place
        )
    for index, part in enumerate(content):
        yield _part(part, f"{place}[{index}]")


def _part(part: Any, place: str) -> tuple[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    match kind:
        case "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise ParameterError(
                    f"{place}.text is {kind_of(text)}; expected text", f"{place}.text"
                )
            return "text", text
        case "image_url":
            return "image", _address(part.get("image_url"), f"{place}.image_url")
    raise ParameterError(
        f"{place}.type is {shown(kind)}; expected 'text' or 'image_url'", f"{place}.type"
    )


def _address(image: Any, place: str) -> str:
    if not isinstance(image, Mapping):
        raise ParameterError(f"{place} is {kind_of(image)}; expected an object with url", place)
    url, detail = image.get("url"), image.get("detail")
    if not isinstance(url, str):
        raise ParameterError(f"{place}.url is {kind_of(url)}; expected text", f"{place}.url")
    if detail not in DETAILS:
        raise ParameterError(
            f"{place}.detail is {shown(detail)}; expected 'auto', 'low' or 'high'",
            f"{place}.detail",
        )
    return url
