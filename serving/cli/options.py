"""Options that several commands share. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from iblip.engines.language_model.options import GenerationOptions

GENERATION: tuple[tuple[str, Any, str], ...] = (
    ("max_new_tokens", int, "Most tokens of the answer. Default: the checkpoint's own."),
    ("min_new_tokens", int, "The answer cannot end before this many tokens. Default: 0."),
    (
        "max_length",
        int,
        "Instead: most positions, image and prompt included (T5: start token and answer).",
    ),
    ("min_length", int, "Instead of --min-new-tokens, counted as --max-length."),
    ("temperature", float, "0 always takes the likeliest token; above, one is drawn. Default: 0."),
    ("top_k", int, "Draw among the k likeliest; 0 is all. Default: 0."),
    ("top_p", float, "Draw among the likeliest that reach this probability. Default: 1."),
    (
        "min_p",
        float,
        "Draw among those with this share of the likeliest's probability. Default: 0.",
    ),
    ("repetition_penalty", float, "Above 1, repeats are less likely. Default: 1."),
    ("no_repeat_ngram_size", int, "No run of so many tokens occurs twice. Default: 0, off."),
    (
        "penalty_scope",
        click.Choice(["all", "answer"]),
        "What counts as said for these two: prompt and answer, or the answer. Default: all.",
    ),
    ("truncation", click.Choice(["left", "right"]), "Cut the Q-Former's instruction at this end."),
    ("max_instruction", int, "Tokens left of it. Default: as many as the Q-Former holds."),
    ("logprobs", int, "Report log-probabilities, of so many tokens besides (with --json)."),
    ("n", int, "So many answers (the others with --json). Default: 1."),
    ("num_beams", int, "Beam search with so many beams. Default: 1, none."),
    (
        "length_penalty",
        float,
        "Of beams and candidates: above 0 favours long answers. Default: 1 of beams, 0 of others.",
    ),
    ("beam_scorer", click.Choice(["v5", "v4"]), "Beams as transformers 5, or 4. Default: v5."),
    ("seed", int, "Of the draw. Default: a fresh one."),
    ("echo", bool, "Whether the answer begins with the prompt. Default: false."),
)
"""Name, type and help of each option of an answer."""

REPEATABLE: tuple[tuple[str, Any, str], ...] = (
    ("stop", str, "End the answer before this text. Repeatable."),
    ("stop_token_ids", int, "End the answer before this token. Repeatable."),
    ("banned_words", str, "A word that the answer may not contain. Repeatable."),
    ("logit_bias", (int, float), "A token and what is added to its logit. Repeatable."),
    ("candidates", str, "An answer to choose from: they are ranked, the likeliest is the answer."),
)
"""The same of those that may be given several times."""

SINGULAR = {"candidates": "--candidate"}
"""Flags that are not called as their options are: one is given at a time."""

MODEL = (
    "Hugging Face directory, or ORG/NAME of a model of the hub; or, with --part, lavis:NAME or "
    "minigpt4:NAME (`iblip models` lists them). Default: the demo checkpoint; of `verify`, the one "
    "that was built."
)

EARLY_STOPPING: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}


def generation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of an answer; `options_from_flags` reads them."""
    for name, kind, text in reversed(REPEATABLE):
        flag = SINGULAR.get(name, "--" + name.replace("_", "-"))
        function = click.option(flag, name, type=kind, multiple=True, help=text)(function)
    early = click.option(
        "--early-stopping",
        type=click.Choice(list(EARLY_STOPPING)),
        help="Of a beam search: when it ends. Default: false.",
    )
    function = early(function)
    for name, kind, text in reversed(GENERATION):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=kind, default=None, help=text)(function)
    return function


def given_from_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """The options of an answer that were given among a command's flags, by name."""
    names = [name for name, _, _ in GENERATION]
    given = {name: flags[name] for name in names if flags[name] is not None}
    given |= {name: tuple(flags[name]) for name, _, _ in REPEATABLE if flags[name]}
    if flags["early_stopping"] is not None:
        given["early_stopping"] = EARLY_STOPPING[flags["early_stopping"]]
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    return given


def options_from_flags(flags: dict[str, Any]) -> GenerationOptions:
    """The options of an answer among a command's flags.

    Raises:
        OptionError: one is out of range.
    """
    from iblip.engines.language_model.options import GenerationOptions

    return GenerationOptions(**given_from_flags(flags))


def as_json(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--json`, as the argument `json_`."""
    text = "Print the result as JSON."
    return click.option("--json", "json_", is_flag=True, help=text)(function)


def triton_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--triton`."""
    return click.option(
        "--triton",
        type=click.Path(path_type=Path),
        metavar="PATH",
        help="A tritonserver to use. Default: the container's, or nvidia-pytriton's.",
    )(function)


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `export.checkpoint.source.ModelSource` is made of: `model`, `revision`, `parts`."""
    for option in (
        click.option(
            "--part",
            "parts",
            multiple=True,
            metavar="NAME=PATH",
            help="A file or directory of an original's checkpoint. Repeatable.",
        ),
        click.option("--revision", help="Branch, tag or commit of a model of the hub."),
        click.option("--model", help=MODEL),
    ):
        function = option(function)
    return function


def engine_cache_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--engine-cache`."""
    return click.option(
        "--engine-cache",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="TensorRT plans that builds share. Default: $IBLIP_CACHE/engines, or iblip/engines "
        "among the user's caches.",
    )(function)


def no_engine_cache_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--no-engine-cache`; `cache_from_flags` reads it with `--engine-cache`."""
    text = "Build every TensorRT plan, and keep none for other builds."
    return click.option("--no-engine-cache", is_flag=True, help=text)(function)


def cache_from_flags(engine_cache: Path | None, no_engine_cache: bool = False) -> Path | None:
    """The directory of the engine cache; `None` where the caller wants none, or has no home.

    Raises:
        OptionError: a directory is given, and that none is wanted.
    """
    from iblip.export.errors import OptionError
    from iblip.export.system.cache_directory import default_directory

    if no_engine_cache and engine_cache:
        raise OptionError("--engine-cache and --no-engine-cache: give one of them")
    return None if no_engine_cache else engine_cache or default_directory()


QUANTISATION: Mapping[str, tuple[Any, str]] = {
    "int8": (str, "int8 vision and Q-Former: activations dynamic or static. Default: dynamic."),
    "llm_int8": (str, "int8 language model: weights alone, or dynamic. Default: weights."),
    "calibration": (
        click.Path(path_type=Path),
        "Directory of images to measure quantisation on. Default: the checkpoint's examples.",
    ),
    "block_size": (int, "Language model: weights a scale, 16 to 256. Default: 32."),
    "asymmetric": (bool, "Language model: blocks have a zero point."),
    "int4_method": (str, "Rounding to four bits: rtn (to nearest) or k-quant. Default: rtn."),
    "sensitive": (
        float,
        "Share of products that stay more precise, the worst ones. "
        "Default: 0.05 with activations of 8 bits, else 0.",
    ),
}
"""Type and help of each field of `export.quantisation.options.QuantisationOptions`."""


def quantisation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of quantisation, each `None` where it is not given."""
    for name, (kind, text) in reversed(list(QUANTISATION.items())):
        flag = "--" + name.replace("_", "-")
        given: dict[str, Any] = {"is_flag": True} if kind is bool else {"type": kind}
        function = click.option(flag, name, default=None, help=text, **given)(function)
    return function


def _words(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `engines.tensorrt.options.PlanOptions` is made of."""
    for option in (
        click.option(
            "--workspace",
            type=int,
            help="Plans: most GPU memory of one layer, in MiB. Default: the library's own limit.",
        ),
        click.option(
            "--builder-flag",
            "builder_flags",
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
    ("max_batch", "Largest batch of vision encoder and Q-Former, in images. Default: 8."),
    ("usual_batch", "Plans: the batch that most runs have. Default: a quarter of the largest."),
    ("max_instruction", "Plans: longest instruction of the Q-Former, in tokens. Default: 128."),
    ("usual_instruction", "Plans: the length of most. Default: a quarter of the longest."),
)
"""Name and help of each option that says how large something may be, and usually is."""


def size_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what `engines.tensorrt.sizes.ProfileOptions` is made of; `None` where not given."""
    function = click.option(
        "--profile",
        "profiles",
        multiple=True,
        metavar="AXIS=SIZES[,…]",
        help="Plans: sizes to tune for, min:opt:max, such as batch=1:1:1 or "
        "batch=1:4:8,instruction=1:32:128. Repeatable; one must hold every request.",
    )(function)
    for name, text in reversed(SIZES):
        flag = "--" + name.replace("_", "-")
        function = click.option(flag, name, type=int, default=None, help=text)(function)
    return function
