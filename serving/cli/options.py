"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.core import ParameterSource

from iblip.engines.language_model.option_kinds import (
    Biases,
    Choice,
    Flag,
    Integer,
    Kind,
    Number,
    Schema,
    Texts,
    TokenIds,
)
from iblip.engines.language_model.option_table import OPTIONS, Option
from iblip.export.errors import OptionError
from iblip.serving.cli.kinds import MODELS, PATH, JsonText, Word

if TYPE_CHECKING:
    from iblip.engines.language_model.options import GenerationOptions

KINDS: Mapping[type[Kind], Any] = {
    Integer: int,
    Number: float,
    Flag: bool,
    Texts: str,
    TokenIds: int,
    Biases: (int, float),
    Schema: JsonText(),
}
"""What click makes of an option's value, or of each where a flag can be given several times."""

MODEL = (
    "Hugging Face directory, or ORG/NAME of a model of the hub; or, with --part, lavis:NAME or "
    "minigpt4:NAME (`iblip models` lists them)."
)


def flag_of_option(option: Option) -> str:
    """Its flag, such as `--top-k`."""
    return option.flag or "--" + option.name.replace("_", "-")


def help_of_option(option: Option) -> str:
    """What `--help` says of it, other options being called as their flags are."""
    form = "Or @FILE, which has it. " if isinstance(option.kind, Schema) else ""
    default = "Repeatable." if _repeats(option) else form + f"Default: {option.default_text}."
    return re.sub(
        r"`(\w+)`", lambda match: flag_of_option(OPTIONS[match[1]]), f"{option.help} {default}"
    )


def _repeats(option: Option) -> bool:
    """Whether its flag may be given several times, for an entry each."""
    return option.kind.json is not None and not isinstance(option.kind, Schema)


ACCESS = ("tls", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token_file")
"""Names of the options for what a server may want of its callers."""

CONNECTION = ("url", *ACCESS)
"""Names of the options that lead to a server."""


def generation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of an answer; `options_from_flags` reads them."""
    for option in reversed(list(OPTIONS.values())):
        kind = option.kind
        function = click.option(
            flag_of_option(option),
            option.name,
            type=click.Choice(list(kind.words)) if type(kind) is Choice else KINDS[type(kind)],
            multiple=_repeats(option),
            help=help_of_option(option),
        )(function)
    return function


def given_from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of an answer that were given among a command's flags, by name."""
    given = {name: flags[name] for name in OPTIONS if flags[name] not in (None, ())}
    return {name: _value(OPTIONS[name].kind, value) for name, value in given.items()}


def _value(kind: Kind, value: Any) -> Any:
    if type(kind) is Choice:
        return kind.words[value]
    return dict(value) if isinstance(kind, Biases) else value


def options_from_flags(flags: dict[str, Any]) -> GenerationOptions:
    """The options of an answer among a command's flags.

    Raises:
        OptionError: one is out of range.
    """
    from iblip.engines.language_model.options import GenerationOptions

    return GenerationOptions(**given_from_flags(flags))


Options = TypeVar("Options")


def options_of(kind: type[Options], flags: Mapping[str, Any]) -> Options:
    """A command's options of one topic.

    Args:
        kind: a dataclass.
        flags: what the command was given, by name; those that are fields of `kind` are taken, and
            what is `None` leaves the field's default.

    Raises:
        OptionError: one is out of range.
    """
    names = [field.name for field in fields(cast(Any, kind))]
    return kind(**{name: flags[name] for name in names if flags[name] is not None})


def original_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what makes an answer like an original's, as `compat` and `preprocessing`."""
    preprocessing = click.option(
        "--preprocessing",
        type=click.Choice(["viewed", "lavis"]),
        default="viewed",
        show_default=True,
        help="Read images as they are meant to be seen, or as LAVIS does: without EXIF "
        "orientation, transparency dropped, 16 bits clipped.",
    )
    compat = click.option(
        "--compat",
        type=click.Choice(["lavis", "hf", "minigpt4"]),
        help="Answer like this original; options given here override its own.",
    )
    return compat(preprocessing(function))


def as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, as the argument `json_`."""
    text = "Print the result as JSON, an error too; docs/json.md lists the fields."
    return click.option("--json", "json_", is_flag=True, help=text)(function)


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what leads to a server; `connection_from_flags` reads it."""
    url = click.option(
        "--url",
        default="127.0.0.1:8001",
        show_default=True,
        help="The server's gRPC address, host:port.",
    )
    return url(access_options(function))


def access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what a server may want of its callers; `access_from_flags` reads it."""
    pem: dict[str, Any] = {"type": PATH, "metavar": "PEM"}
    for option in (
        click.option(
            "--token-file",
            type=PATH,
            metavar="FILE",
            help="File with the token that the server wants.",
        ),
        click.option("--tls-server-name", help="Name in its certificate, if not the address."),
        click.option("--tls-key", **pem, help="The key of --tls-cert."),
        click.option("--tls-cert", **pem, help="Certificate for a server with mutual TLS."),
        click.option("--tls-ca", **pem, help="TLS, with a certificate signed by one of these."),
        click.option("--tls", is_flag=True, help="TLS, with a certificate of a public authority."),
    ):
        function = option(function)
    return function


def connection_from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a client among a command's flags, which they are taken out of.

    Raises:
        OptionError: a file cannot be used.
    """
    return {"url": flags.pop("url"), **access_from_flags(flags)}


def refuse_connection(instead: str, names: Collection[str] = (*CONNECTION, "more_urls")) -> None:
    """Refuses options that lead to a server, where the call says otherwise what is asked.

    Args:
        instead: what says it, such as `--build`.
        names: of the options.

    Raises:
        OptionError: one is on the command line; what the environment has for all calls is ignored.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is ParameterSource.COMMANDLINE:
            raise OptionError(f"{instead} and {parameter.opts[0]} are given; leave one of them out")


def access_from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Those of `connection_from_flags` that do not say where the server is.

    Raises:
        OptionError: a file cannot be used.
    """
    from iblip.serving.client.security import TLS
    from iblip.serving.credentials import read_token

    files = {
        "authorities": flags.pop("tls_ca"),
        "certificate": flags.pop("tls_cert"),
        "key": flags.pop("tls_key"),
        "server_name": flags.pop("tls_server_name"),
    }
    token_file = flags.pop("token_file")
    return {
        "tls": TLS(**files) if flags.pop("tls") or any(files.values()) else None,
        "token": None if token_file is None else read_token(token_file),
    }


def vision_cache_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--vision-cache` and its size; `cache_directory` reads them."""
    size = click.option(
        "--vision-cache-size",
        "vision_cache_mib",
        type=click.IntRange(1),
        metavar="MIB",
        help="Most MiB of the files of --vision-cache. Default: 1024.",
    )
    return click.option(
        "--vision-cache",
        type=PATH,
        metavar="DIR",
        help="Directory for encoded images, so that they are not encoded again after a restart. "
        "Default: none.",
    )(size(function))


def triton_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--triton`."""
    return click.option(
        "--triton",
        type=PATH,
        metavar="PATH",
        help="A tritonserver to use. Default: the container's, or nvidia-pytriton's.",
    )(function)


def source_options(*, of_build: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds fields of `export.checkpoint.source.ModelSource`, all but the size of images.

    Args:
        of_build: whether they replace those of a build, instead of naming what to build.
    """
    own = "Default: the build's own."
    taken = own if of_build else "Without --model, the model that it was trained on is taken."
    options = (
        click.option(
            "--adapter",
            "adapters",
            multiple=True,
            metavar="ADAPTER",
            help="A LoRA adapter that peft saved: its directory, or ORG/NAME or ORG/NAME@REVISION "
            "of the hub. It is merged into the model. Repeatable, in order. "
            f"{taken}",
        ),
        click.option(
            "--part",
            "parts",
            multiple=True,
            metavar="NAME=PATH",
            help="A file or directory of an original's checkpoint. Repeatable.",
        ),
        click.option("--revision", help="Branch, tag or commit of a model from the hub."),
        click.option(
            "-m",
            "--model",
            type=MODELS,
            help=f"{MODEL} {own if of_build else 'Default: the demo checkpoint.'}",
        ),
    )

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in options:
            function = option(function)
        return function

    return add


def engine_cache_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--engine-cache`."""
    return click.option(
        "--engine-cache",
        type=PATH,
        metavar="DIR",
        help="Cache of TensorRT plans that builds share. Default: $IBLIP_CACHE/engines, or "
        "iblip/engines in the user's cache directory.",
    )(function)


def no_engine_cache_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--no-engine-cache`; `cache_from_flags` reads it with `--engine-cache`."""
    text = "Build every TensorRT plan anew, and cache none for other builds."
    return click.option("--no-engine-cache", is_flag=True, help=text)(function)


def cache_from_flags(engine_cache: Path | None, no_engine_cache: bool = False) -> Path | None:
    """The directory of the engine cache; `None` with `--no-engine-cache`, or without a home.

    Raises:
        OptionError: both options are given.
    """
    from iblip.export.errors import OptionError
    from iblip.export.system.cache_directory import default_directory

    if no_engine_cache and engine_cache:
        raise OptionError("--engine-cache and --no-engine-cache: give one of them")
    return None if no_engine_cache else engine_cache or default_directory()


def prune_options(items: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds what says which items of a cache are removed; `policy_from_words` reads it."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--dry-run", is_flag=True, help="Show what would be removed, without removing it."
            ),
            click.option("--all", "everything", is_flag=True, help="Remove all of them."),
            click.option(
                "--max-size",
                metavar="SIZE",
                help="Remove the least recently used, until the rest fits: 20GB, 512MiB.",
            ),
            click.option(
                "--older-than",
                metavar="AGE",
                help=f"Remove {items} not used for this long: 30d, 12h.",
            ),
        ):
            function = option(function)
        return function

    return add


QUANTISATION: Mapping[str, tuple[Any, str]] = {
    "int8": (
        Word(lambda: ("dynamic", "static")),
        "int8 vision encoder and Q-Former: activations dynamic or static. Default: dynamic.",
    ),
    "llm_int8": (
        Word(lambda: ("weights", "dynamic")),
        "int8 language model: weights only, or dynamic. Default: weights.",
    ),
    "calibration": (
        PATH,
        "Directory of images for calibration. Default: the checkpoint's examples.",
    ),
    "block_size": (int, "Language model: weights that share a scale, 16 to 256. Default: 32."),
    "asymmetric": (bool, "Language model: give each block a zero point."),
    "int4_method": (
        Word(lambda: ("rtn", "k-quant")),
        "Rounding to four bits: rtn (to nearest) or k-quant. Default: rtn.",
    ),
    "sensitive": (
        float,
        "Share of MatMuls, those with the largest error, that keep a higher precision. "
        "Default: 0.05 with 8-bit activations, else 0.",
    ),
}
"""Type and help of each field of `export.quantisation.options.QuantisationOptions`."""


def quantisation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the fields of `export.quantisation.options.QuantisationOptions`."""
    for name, (kind, text) in reversed(list(QUANTISATION.items())):
        flag = "--" + name.replace("_", "-")
        given: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        function = click.option(flag, name, default=None, help=text, **given)(function)
    return function


def _words(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the fields of `engines.tensorrt.options.PlanOptions`."""
    for option in (
        click.option(
            "--workspace",
            type=int,
            help="Plans: most GPU memory for one layer, in MiB. Default: the library's own limit.",
        ),
        click.option(
            "--builder-flag",
            "flags",
            multiple=True,
            metavar="WORD",
            help="Plans: version-compatible, hardware-compatible=ampere-plus, refit, strip-plan, "
            "weight-streaming, tf32, sparse-weights, strict-nans (docs/tensorrt.md). Repeatable.",
        ),
        click.option(
            "--target",
            "targets",
            metavar="SM[,SM…]",
            default="",
            callback=_words,
            help="GPU families to build plans for, such as sm86,sm89. Default: this machine's.",
        ),
    ):
        function = option(function)
    return function


SIZES: tuple[tuple[str, str], ...] = (
    ("max_batch", "Largest batch of the vision encoder and Q-Former, in images. Default: 8."),
    ("opt_batch", "Plans: the batch to tune for. Default: a quarter of the largest."),
    ("max_instruction", "Plans: longest instruction of the Q-Former, in tokens. Default: 128."),
    ("opt_instruction", "Plans: the length to tune for. Default: a quarter of the longest."),
)
"""Name and help of each option that says how large something may be, and what to tune for."""


def size_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the fields of `serving.builder.options.SizeOptions`."""
    function = click.option(
        "--profile",
        "profiles",
        multiple=True,
        metavar="AXIS=SIZES[,…]",
        help="Plans: sizes of an optimization profile, min:opt:max, such as batch=1:1:1 or "
        "batch=1:4:8,instruction=1:32:128. Repeatable; one must cover every request.",
    )(function)
    for name, text in reversed(SIZES):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=int, default=None, help=text)(function)
    return function
