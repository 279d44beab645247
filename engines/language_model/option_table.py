"""Every generation option, one row each: what it is called, takes and means, and who has it.

All else that speaks of options is made from these rows: the checks of `GenerationOptions` and their
messages, the flags of `iblip ask`, the wire's parameters, what vLLM refuses, and the tables in
docs/wire.md and docs/compat.md (`option_page.py`). A new option is a row here, a field of the same
name in `GenerationOptions`, and the code that does what it asks. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    plain,
)

MAX_SEED = 2**63 - 1
MOST_SEQUENCES = 64
MOST_LOGPROBS = 100
MOST_CANDIDATES = 1000
MOST_SCHEMA = 1 << 15
MOST_LISTED = 1000
"""Entries of `banned_words`, `stop` and `stop_token_ids`."""

ONNXRUNTIME = "onnxruntime"
VLLM = "vllm"
"""The language model's engines, as `--llm-engine` names them."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One generation option.

    Texts are Markdown: the name of another option stands between backticks.

    Attributes:
        name: of the field, the request parameter, and (with hyphens) the flag.
        kind: the values that it takes.
        default: where it is not given. Where that is `None`, `None` may be given, too.
        help: one line that says what it does.
        note: what else a page says of it.
        unset: the default in words, where the value itself does not say it.
        example: a value as JSON, of those that travel as JSON in a string.
        flag: on the command line, where it is not called as the option is.
        at_most: the option that bounds this one from above, where that is given.
        instead_of: the option that says the same in other words: only one of them may be given.
        ranks: whether it may be given with `candidates`.
        engines: the language model's engines that have it.
        lavis: its name by call of LAVIS, `__init__` being the model's and `init_tokenizer` the
            tokenizer's own.
        transformers: the argument of transformers' `generate` that is nearest to it; may be empty.
        vllm: the same of vLLM's `SamplingParams`.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    note: str = ""
    unset: str = ""
    example: str = ""
    flag: str = ""
    at_most: str = ""
    instead_of: str = ""
    ranks: bool = False
    engines: tuple[str, ...] = (ONNXRUNTIME, VLLM)
    lavis: Mapping[str, str] = field(default_factory=dict)
    transformers: str = ""
    vllm: str = ""

    @property
    def default_text(self) -> str:
        """The default in words."""
        return self.unset or plain(self.default)

    def check(self, value: object) -> None:
        """Refuses what is not of this kind.

        Raises:
            OptionError: naming the option, the value that was given, and those expected.
        """
        if value is not None or self.default is not None:
            self.kind.check(self.name, value)


_SAMPLES = "Effective only where `temperature` is above 0."
_BEAMS = "Of a beam search."

OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option(
            name="max_new_tokens",
            kind=Integer(1),
            default=None,
            unset="the checkpoint's own",
            help="Most tokens of the answer.",
            lavis={"generate": "max_length", "predict_answers": "max_len"},
            transformers="max_new_tokens",
            vllm="max_tokens",
        ),
        Option(
            name="min_new_tokens",
            kind=Integer(0),
            default=0,
            at_most="max_new_tokens",
            help="Fewest tokens of the answer; only a stop string ends it earlier.",
            lavis={"generate": "min_length", "predict_answers": "min_len"},
            transformers="min_new_tokens",
            vllm="min_tokens",
        ),
        Option(
            name="max_length",
            kind=Integer(1),
            default=None,
            unset="none",
            instead_of="max_new_tokens",
            help="Alternative to `max_new_tokens`: the total length, image and prompt included.",
            note="Counted in positions, as transformers counts token ids: image, prompt and answer "
            "of a decoder-only model; start token and answer of an encoder-decoder (T5).",
            transformers="max_length",
        ),
        Option(
            name="min_length",
            kind=Integer(0),
            default=0,
            at_most="max_length",
            instead_of="min_new_tokens",
            help="Alternative to `min_new_tokens`, counted as `max_length` is.",
            transformers="min_length",
        ),
        Option(
            name="temperature",
            kind=Number(0, 100),
            default=0.0,
            help="0 always takes the most likely token; above 0, tokens are sampled.",
            note="Logits are divided by it before a token is sampled.",
            lavis={"generate": "temperature"},
            transformers="temperature",
            vllm="temperature",
        ),
        Option(
            name="top_k",
            kind=Integer(0),
            default=0,
            help="Sample among the k most likely tokens; 0 is all of them.",
            note=_SAMPLES,
            transformers="top_k",
            vllm="top_k",
        ),
        Option(
            name="top_p",
            kind=Number(0, 1, above=True),
            default=1.0,
            help="Sample among the most likely tokens that together reach this probability.",
            note=_SAMPLES,
            lavis={"generate": "top_p"},
            transformers="top_p",
            vllm="top_p",
        ),
        Option(
            name="min_p",
            kind=Number(0, 1),
            default=0.0,
            help="Sample among tokens with at least this share of the highest probability.",
            note=_SAMPLES,
            transformers="min_p",
            vllm="min_p",
        ),
        Option(
            name="seed",
            kind=Integer(0, MAX_SEED),
            default=None,
            unset="a fresh one",
            help="Seed of the random generator that samples.",
            note=_SAMPLES,
            vllm="seed",
        ),
        Option(
            name="repetition_penalty",
            kind=Number(0, 100, above=True),
            default=1.0,
            help="Above 1, tokens that have occurred are less likely, as in transformers.",
            lavis={"generate": "repetition_penalty"},
            transformers="repetition_penalty",
            vllm="repetition_penalty",
        ),
        Option(
            name="no_repeat_ngram_size",
            kind=Integer(0),
            default=0,
            engines=(ONNXRUNTIME,),
            help="No sequence of this many tokens occurs twice; 0 is off.",
            transformers="no_repeat_ngram_size",
        ),
        Option(
            name="penalty_scope",
            kind=Choice(("all", "answer")),
            default="all",
            engines=(ONNXRUNTIME,),
            help="What counts as having occurred for the two above and `banned_words`: prompt and "
            "answer, or the answer.",
            note="`all` is as in transformers given token ids: image placeholders and prompt of a "
            "decoder-only model count, too. `answer` is as in LAVIS, which gives embeddings alone: "
            "only the answer counts, and the token that it starts with: an encoder-decoder's, and "
            "in a build of LAVIS's or MiniGPT-4's files the BOS token that their `generate` makes.",
        ),
        Option(
            name="logit_bias",
            kind=Biases(Number(-100, 100)),
            default={},
            example='{"13": -5.5}',
            help="Token ids, and what is added to the logit of each.",
            transformers="sequence_bias",
            vllm="logit_bias",
        ),
        Option(
            name="banned_words",
            kind=Texts(MOST_LISTED),
            default=(),
            example='["red", "blue"]',
            help="Words that the answer may not contain, as tokens of their own.",
            transformers="bad_words_ids",
            vllm="bad_words",
        ),
        Option(
            name="stop",
            kind=Texts(MOST_LISTED),
            default=(),
            example='["\\n", "###"]',
            help="Strings before which the answer ends.",
            transformers="stop_strings",
            vllm="stop",
        ),
        Option(
            name="stop_token_ids",
            kind=TokenIds(MOST_LISTED),
            default=(),
            example="[13, 29]",
            help="Tokens before which the answer ends.",
            transformers="eos_token_id",
            vllm="stop_token_ids",
        ),
        Option(
            name="logprobs",
            kind=Integer(0, MOST_LOGPROBS),
            default=None,
            unset="none",
            help="Report each token's log-probability, and those of this many most likely tokens.",
            note="Not of a beam search.",
            transformers="output_logits",
            vllm="logprobs",
        ),
        Option(
            name="n",
            kind=Integer(1, MOST_SEQUENCES),
            default=1,
            help="Number of answers.",
            note="More than one needs a `temperature` above 0, or at least as many `num_beams`.",
            lavis={"generate": "num_captions"},
            transformers="num_return_sequences",
            vllm="n",
        ),
        Option(
            name="num_beams",
            kind=Integer(1, MOST_SEQUENCES),
            default=1,
            engines=(ONNXRUNTIME,),
            help="Above 1, beam search with this many beams.",
            note="Nothing is sampled then, and the text comes at the end.",
            lavis={"generate": "num_beams", "predict_answers": "num_beams"},
            transformers="num_beams",
        ),
        Option(
            name="length_penalty",
            kind=Number(-10, 10),
            default=None,
            unset="1 in a beam search, 0 in a ranking",
            ranks=True,
            engines=(ONNXRUNTIME,),
            help="Above 0 favours long answers in a beam search or ranking, below 0 short ones.",
            note="A sum of log-probabilities is divided by its number of tokens to this power.",
            lavis={"generate": "length_penalty", "predict_answers": "length_penalty"},
            transformers="length_penalty",
        ),
        Option(
            name="early_stopping",
            kind=Choice((True, False, "never")),
            default=False,
            engines=(ONNXRUNTIME,),
            help="When a beam search ends.",
            note="As in transformers: `true` at `num_beams` finished beams, `false` where better "
            "ones are unlikely, `never` where there can be none.",
            transformers="early_stopping",
        ),
        Option(
            name="beam_scorer",
            kind=Choice(("v5", "v4")),
            default="v5",
            engines=(ONNXRUNTIME,),
            help="Score and end a beam search as transformers 5 does, or as 4.33 and before.",
            note="LAVIS answers with the latter, where a beam that is cut off counts one token "
            "more.",
        ),
        Option(
            name="candidates",
            kind=Texts(MOST_CANDIDATES, blank=False),
            default=(),
            example='["a cat", "a dog"]',
            flag="--candidate",
            engines=(ONNXRUNTIME,),
            help="Answers to choose from: each is scored, and the most likely is the answer.",
            note="Nothing is generated then.",
            lavis={"predict_class": "candidates"},
        ),
        Option(
            name="json_schema",
            kind=Schema(MOST_SCHEMA),
            default=None,
            unset="none",
            example='{"type": "string", "enum": ["red", "blue"]}',
            engines=(ONNXRUNTIME,),
            help="JSON schema that the answer follows, which is then JSON.",
            note="Tokens that would leave it are never chosen. An answer that is cut off, with the "
            "finish reason `length`, is the beginning of such JSON. Goes with sampling, not with "
            "`num_beams`, `min_new_tokens`, `min_length`, `stop` or `stop_token_ids`.",
        ),
        Option(
            name="truncation",
            kind=Choice(("", "left", "right")),
            default="",
            unset="none",
            ranks=True,
            help="Cut an instruction that is too long for the Q-Former at this end.",
            note="As a tokenizer's `truncation_side`. Without it, a longer one is refused. The "
            "language model reads the prompt whole.",
            lavis={"init_tokenizer": "truncation_side"},
        ),
        Option(
            name="max_instruction",
            kind=Integer(1),
            default=None,
            unset="as many as the Q-Former holds",
            ranks=True,
            help="Truncate the instruction to this many tokens; needs `truncation`.",
            note="The tokenizer's special tokens are among them.",
            lavis={"__init__": "max_txt_len"},
        ),
        Option(
            name="echo",
            kind=Flag(),
            default=False,
            help="Whether the answer begins with the prompt. Only of decoder-only models.",
            note="Text and token ids do, image placeholders included, as transformers' `generate` "
            "returns them.",
        ),
    )
}
"""Every option by name, in the order of the pages and of `--help`."""


def options_of_lavis(call: str) -> Mapping[str, str]:
    """The options of a call of LAVIS: their names there, each with its name here."""
    return {one.lavis[call]: name for name, one in OPTIONS.items() if call in one.lavis}
