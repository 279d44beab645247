"""How the originals answer: LAVIS, transformers and MiniGPT-4, as options of this project.

One row a family, language model and call. Every number names where it stands in the original;
docs/compat.md has them side by side, and says how each was proven.

LAVIS gives a decoder-only model embeddings and no ids. Up to transformers 4.37 `generate` then
begins with a token of its own, which counts against `max_length` and `min_length`: 256 is 255
tokens of answer. Later versions count the prompt instead, and LAVIS's ten tokens no longer fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iblip.engines.language_model.option_table import OPTIONS
from iblip.engines.language_model.options import GenerationOptions
from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean

LAVIS = "lavis"
HF = "hf"
MINIGPT4 = "minigpt4"

DEFAULT_CALLS: Mapping[str, str] = {LAVIS: "generate", HF: "generate", MINIGPT4: "answer"}
"""By original: the call that a plain question is."""

RANKING = "predict_class"
"""The call that candidates are."""


TIDIED: Mapping[str, str] = {
    **{f" {mark}": mark for mark in (".", "?", "!", ",")},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}
"""What decoding replaces, in this order, in transformers of LAVIS's time, unless a tokenizer says
otherwise, as LLaMA's does (4.33, `tokenization_utils_base.py`, `clean_up_tokenization`)."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One call of an original.

    Attributes:
        options: by name, what is not the default here.
        source: where the original has it.
        strip: it cuts white space off both ends of a text.
        tidy: its tokenizer removes spaces before punctuation, as `TIDIED` has them.
        after: it keeps what comes after the last of this; empty keeps all.
        started: positions that its lengths count before the first token of an answer.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    source: str
    strip: bool = False
    tidy: bool = False
    after: str = ""
    started: int = 0

    def finished(self, text: str) -> str:
        """The text as the original's caller gets it."""
        if self.after:
            text = text.rsplit(self.after, 1)[-1]
        if self.tidy:
            for spaced, tidied in TIDIED.items():
                text = text.replace(spaced, tidied)
        return text.strip() if self.strip else text

    def with_options(self, options: GenerationOptions | Mapping[str, Any]) -> GenerationOptions:
        """This preset, overridden by options.

        Args:
            options: by name, each overrides the preset's; of a `GenerationOptions`, those that are
                not at their defaults. A limit in other words (`max_length` for `max_new_tokens`)
                overrides too.

        Raises:
            OptionError: together they make no sense.
        """
        given = options.to_mapping() if isinstance(options, GenerationOptions) else dict(options)
        others = {_TWINS[name] for name in given if name in _TWINS}
        mine = {name: value for name, value in self.options.items() if name not in others}
        return GenerationOptions.from_mapping({**mine, **given})


_PAIRS = [(name, option.instead_of) for name, option in OPTIONS.items() if option.instead_of]
_TWINS = {**dict(_PAIRS), **{other: name for name, other in _PAIRS}}

# The Q-Former's tokenizer of InstructBLIP: `max_txt_len` 128, `truncation_side` "left".
_CUT = {"truncation": "left", "max_instruction": 128}
_BLIP2 = {"num_beams": 5, "penalty_scope": "answer", "beam_scorer": "v4"}
_INSTRUCT = {**_BLIP2, "repetition_penalty": 1.5, **_CUT}
_VICUNA = "LAVIS, blip2_vicuna_instruct.py"
_T5 = "LAVIS, blip2_t5_instruct.py"
_BLIP2_OPT = "LAVIS, blip2_opt.py"
_BLIP2_T5 = "LAVIS, blip2_t5.py"
_CHAT = "MiniGPT-4, conversation.py, `Chat.answer_prepare` and `Chat.answer`"
_HF = "transformers 5.23, generation/utils.py, `_prepare_generated_length`"


def _lavis(
    options: Mapping[str, Any], tokens: int, length_penalty: float, source: str, **rules: Any
) -> Preset:
    lengths = {"max_new_tokens": tokens, "length_penalty": length_penalty}
    return Preset(options={**options, **lengths}, source=source, **rules)


_STARTED: Mapping[str, Any] = {"strip": True, "started": 1}

# Decoders are given ids, so the prompt comes back.
_ECHOED = ("llama", "mistral", "qwen2", "opt", "gpt_neox")

PRESETS: Mapping[tuple[str, str, str, str], Preset] = {
    (LAVIS, "instructblip", "llama", "generate"): _lavis(_INSTRUCT, 255, 1.0, _VICUNA, **_STARTED),
    (LAVIS, "instructblip", "llama", "predict_answers"): _lavis(
        _INSTRUCT, 9, 0.0, _VICUNA, **_STARTED
    ),
    (LAVIS, "instructblip", "llama", RANKING): Preset(options=_CUT, source=_VICUNA),
    # Through `max_new_tokens`, so that nothing is counted before the answer; not stripped.
    (LAVIS, "instructblip", "t5", "generate"): _lavis(_INSTRUCT, 256, 1.0, _T5, tidy=True),
    (LAVIS, "instructblip", "t5", "predict_answers"): _lavis(_INSTRUCT, 10, -1.0, _T5, tidy=True),
    (LAVIS, "instructblip", "t5", RANKING): Preset(options=_CUT, source=_T5),
    (LAVIS, "blip2", "opt", "generate"): _lavis(_BLIP2, 29, 1.0, _BLIP2_OPT, tidy=True, **_STARTED),
    # `max_new_tokens`, unlike its `generate`.
    (LAVIS, "blip2", "opt", "predict_answers"): _lavis(
        _BLIP2, 10, 0.0, _BLIP2_OPT, tidy=True, strip=True
    ),
    (LAVIS, "blip2", "t5", "generate"): _lavis(_BLIP2, 30, 1.0, _BLIP2_T5, tidy=True),
    (LAVIS, "blip2", "t5", "predict_answers"): _lavis(_BLIP2, 10, -1.0, _BLIP2_T5, tidy=True),
    # "By default let's always generate 20 new tokens".
    **{
        (HF, family, kind, "generate"): Preset(
            options={"max_new_tokens": 20, **({"echo": True} if kind in _ECHOED else {})},
            source=_HF,
        )
        for family in ("instructblip", "blip2")
        for kind in (*_ECHOED, "t5", "mt5")
    },
    (MINIGPT4, "minigpt4", "llama", "answer"): Preset(
        options={
            "max_new_tokens": 300,
            "temperature": 1.0,
            "top_p": 0.9,
            "repetition_penalty": 1.05,
            "penalty_scope": "answer",
            "stop": ["###"],
        },
        source=_CHAT,
        strip=True,
        after="Assistant:",
    ),
    (MINIGPT4, "minigpt4", "llama", "generate"): Preset(
        options={"max_new_tokens": 20, "penalty_scope": "answer"},
        source="MiniGPT-4, minigpt_base.py, `generate`",
        strip=True,
        after="[/INST]",
    ),
}
"""By original, family, language model and call."""


def preset(compat: str, *, family: str, language_model: str, call: str | None = None) -> Preset:
    """How an original answers.

    Args:
        compat: `"lavis"`, `"hf"` or `"minigpt4"`.
        family: of the model, as the manifest has it: `instructblip`, `blip2` or `minigpt4`.
        language_model: its architecture, transformers' `model_type`, such as `llama`.
        call: of the original's, such as `predict_answers`; `None` is the one for a question.

    Raises:
        OptionError: there is no such original, or it has no such model or call.
    """
    if compat not in DEFAULT_CALLS:
        hint = did_you_mean(compat, DEFAULT_CALLS)
        raise OptionError(
            f"compat is {compat!r}; expected one of {', '.join(map(repr, DEFAULT_CALLS))}.{hint}"
        )
    call = call or DEFAULT_CALLS[compat]
    found = PRESETS.get((compat, family, language_model, call))
    if found is None:
        calls = [key[3] for key in PRESETS if key[:3] == (compat, family, language_model)]
        there = f"it has {', '.join(calls)}" if calls else "it has no such model"
        raise OptionError(
            f"compat is {compat!r}, which has no {call} for {family} on {language_model}; {there}"
        )
    return found
