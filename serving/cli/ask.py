"""`iblip ask`: one question about one image or several."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from iblip.engines.language_model.option_table import OPTIONS
from iblip.export.errors import DeadlineError, InputError, OptionError
from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import IMAGE
from iblip.serving.cli.options import (
    CONNECTION,
    as_json,
    connection_from_flags,
    connection_options,
    generation_options,
    given_from_flags,
    options_from_flags,
    original_options,
)
from iblip.serving.cli.picture import show_image

if TYPE_CHECKING:
    from iblip.engines.language_model.types import Priority
    from iblip.export.images import Reading
    from iblip.serving.client import AnswerStream

HEADINGS = {"Server": CONNECTION, "Generation": tuple(OPTIONS)}


@click.command(cls=Command, short_help="Ask a running server about an image.", headings=HEADINGS)
@click.argument("images", metavar="IMAGE...", type=IMAGE, nargs=-1, required=True)
@click.argument("prompt")
@click.option("--stream", is_flag=True, help="Print the answer as it is generated.")
@as_json
@connection_options
@original_options
@click.option("--timeout", "timeout_s", type=float, help="Seconds to wait for the whole answer.")
@click.option(
    "--priority",
    type=click.Choice(["interactive", "bulk"]),
    default="interactive",
    show_default=True,
    help="Where others wait, interactive questions go first.",
)
@generation_options
def command(
    images: tuple[str, ...],
    prompt: str,
    stream: bool,
    json_: bool,
    compat: str | None,
    preprocessing: Reading,
    timeout_s: float | None,
    priority: Priority,
    **flags: Any,
) -> None:
    """Ask a running server PROMPT about IMAGE (a file; `-` reads it from standard input).

    Some models take several images, such as the frames of a video: `iblip inspect` shows how many.
    A prompt for MiniGPT-4 may mark with <ImageHere> where each image goes.

    With --stream --json each piece is a line, {"delta": ...}, and the last line is the whole
    answer. With --candidate each candidate is a line with its score and text, most likely first.
    """
    options = given_from_flags(flags) if compat else options_from_flags(flags)
    from iblip.serving.client import Client
    from iblip.serving.client.patience import ONE_ATTEMPT

    how: dict[str, Any] = {"options": options, "compat": compat, "priority": priority}
    connection = connection_from_flags(flags)
    sources = _sources(images)
    if not json_:
        for source in sources:
            show_image(source)
    timeout = ONE_ATTEMPT if timeout_s is None else timeout_s
    try:
        with Client(
            **connection, timeout=timeout, retries=0, preprocessing=preprocessing
        ) as client:
            if stream and not flags["candidates"]:
                with client.stream(sources, prompt, **how) as pieces:
                    _print_pieces(pieces, json_)
                    answer = pieces.answer
            else:
                answer = client.ask(sources, prompt, **how)
    except DeadlineError as error:
        remedy = "Give more with --timeout" if timeout_s else "Set one with --timeout, or ask later"
        raise DeadlineError(f"{str(error).rstrip('.')}. {remedy}.") from error
    if json_:
        echo_json(asdict(answer), indent=None)
    elif answer.ranking:
        for candidate in answer.ranking:
            echo(f"{candidate.score:10.4f}  {candidate.text}")
    elif not stream:
        echo(answer.text)


def _sources(images: Sequence[str]) -> list[str | bytes]:
    """The images as a client takes them: bytes for `-`.

    Raises:
        OptionError: `-` is given twice.
        InputError: nothing comes from standard input.
    """
    if images.count("-") > 1:
        raise OptionError("`-` is given twice; standard input holds one image")
    sources: list[str | bytes] = list(images)
    if "-" in images:
        data = b"" if sys.stdin is None else sys.stdin.buffer.read()
        if not data:
            raise InputError("standard input is empty; expected an image, as in `… - < photo.jpg`")
        sources[images.index("-")] = data
    return sources


def _print_pieces(answer: AnswerStream, json_: bool) -> None:
    for text in answer:
        line = json.dumps({"delta": text}, ensure_ascii=False) + "\n" if json_ else text
        echo(line, nl=False)
    if not json_:
        echo()
