"""What `iblip bench` and `iblip tune` share: what is asked, the objective, a served build."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from iblip.export.errors import OptionError
from iblip.export.system.paths import expanded
from iblip.serving.cli.kinds import PATH, ExistingPath
from iblip.serving.cli.options import refuse_connection

if TYPE_CHECKING:
    from iblip.serving.bench.objective import Objective
    from iblip.serving.bench.requests import Mix

GENERATED = ("image", "input_", "prompt", "prompt_words", "max_new_tokens")
"""Names of the options for what is asked."""


class Target(click.ParamType[Any]):
    """A build's directory, or a server's address: what has a colon and is no directory."""

    name = "target"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """A path for a build, a string for a server."""
        path = expanded(value) if value else Path()
        if value and path.is_dir():
            return path
        if ":" not in str(value):
            self.fail(f"there is no directory {value}; a server is HOST:PORT", param, ctx)
        return str(value)


class Positive(click.FloatRange):
    """A number above 0 and at most `most`; click's own ranges take "nan" for one."""

    def __init__(self, most: float) -> None:
        super().__init__(0, most, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def mix_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options for what is asked; `mix_from_flags` reads them."""
    for option in (
        click.option(
            "--max-new-tokens",
            metavar="N[-M]",
            help="Tokens of every answer: none ends before. Default: 32; of --input, any.",
        ),
        click.option("--prompt-words", metavar="N[-M]", help="Repeat or cut prompts to this."),
        click.option("--prompt", default="Describe the image.", show_default=True),
        click.option(
            "--input",
            "input_",
            type=PATH,
            help="Ask about these images, as `iblip run` reads them, over and over; the first 256 "
            "questions. Options of a row are its own.",
        ),
        click.option(
            "--image",
            type=ExistingPath(),
            help="The image to ask about. Default: noise, another for each request.",
        ),
    ):
        function = option(function)
    return function


def timeout_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--timeout`, as the argument `timeout_s`."""
    return click.option(
        "--timeout",
        "timeout_s",
        default=60.0,
        show_default=True,
        type=Positive(86_400),
        help="Seconds for a whole answer; then it counts as timed out.",
    )(function)


def mix_from_flags(flags: dict[str, Any]) -> Mix:
    """What is asked, from a command's flags, of which they are taken.

    Raises:
        UsageError: a length cannot be read, or the input cannot.
    """
    from iblip.serving.bench.requests import Mix, Span
    from iblip.serving.bulk.rows import read_rows

    image, input_ = flags.pop("image"), flags.pop("input_")
    words, tokens = flags.pop("prompt_words"), flags.pop("max_new_tokens")
    if image is not None and input_ is not None:
        raise OptionError("--image and --input: give one of them")
    if tokens is None and input_ is None:
        tokens = "32"
    return Mix(
        image=image,
        rows=None if input_ is None else read_rows(input_),
        prompt=flags.pop("prompt"),
        words=None if words is None else Span.parse(words),
        tokens=None if tokens is None else Span.parse(tokens),
    )


def objective_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--slo` and `--slo-share`; `objective_from_flags` reads them."""
    share = click.option(
        "--slo-share",
        type=float,
        metavar="SHARE",
        help="Share of all requests that must meet the SLO. Default: 0.99.",
    )
    slo = click.option(
        "--slo",
        metavar="NAME=TIME[,…]",
        help="Longest times: ttft (to the first text), itl (a token after it), e2e (whole answer), "
        "such as ttft=500ms,itl=50ms.",
    )
    return slo(share(function))


def objective_from_flags(flags: dict[str, Any]) -> Objective | None:
    """The objective among a command's flags, of which it is taken.

    Raises:
        OptionError: it cannot be read.
    """
    from iblip.serving.bench.objective import Objective

    slo, share = flags.pop("slo"), flags.pop("slo_share")
    if slo is None:
        if share is not None:
            raise OptionError("--slo-share is given without --slo")
        return None
    return Objective.parse(slo) if share is None else Objective.parse(slo, share)


@contextlib.contextmanager
def served(
    target: Path | str | None, connection: Mapping[str, Any], triton: Path | None
) -> Iterator[Mapping[str, Any]]:
    """Serves the target if it is a build, and yields the arguments of a client.

    Raises:
        OptionError: the server is named twice.
        IblipError: the build cannot be served.
    """
    if target is None:
        yield connection
    elif isinstance(target, str):
        refuse_connection(target, ["url"])
        yield {**connection, "url": target}
    else:
        refuse_connection(str(target))
        from iblip.export.artifact.manifest import Manifest
        from iblip.serving.launching import environment_of_models
        from iblip.serving.repository.assembling import REPOSITORY
        from iblip.serving.server.options import ServerOptions
        from iblip.serving.server.server import TritonServer

        environment = environment_of_models(Manifest.read(target))
        options = ServerOptions(triton=triton, environment=environment)
        with TritonServer(target / REPOSITORY, options, progress=lambda _: None) as server:
            yield {**connection, "url": server.grpc_url}
