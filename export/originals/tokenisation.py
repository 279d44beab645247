"""Makes today's tokenizers read prompts as the originals' own versions of transformers do.

LAVIS and MiniGPT-4 read LLaMA's prompts with the slow `LlamaTokenizer` of their time, which is
sentencepiece between special tokens. Each piece of text gets a space in front, also behind a
special token, and also where it begins with one; some special tokens take the white space around
them. FLAN-T5's are read with the fast `T5TokenizerFast`, whose `tokenizer.json` counts as it is.

Everything is written into the backend's own form, so that a build's `tokenizer.json` has it.

Sources: huggingface/transformers 4.33.2, `tokenization_utils.py` (`tokenize`),
`models/llama/tokenization_llama.py`, `convert_slow_tokenizer.py` (`SpmConverter`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.directory import object_from_json

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What sentencepiece's pieces have for a space."""

State = dict[str, Any]
"""The content of a `tokenizer.json`."""

_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_LEGACY: Mapping[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": SPACE}, _SPACES],
    },
    "pre_tokenizer": None,
}
# `Metaspace` adds no space to a text that begins with one; the slow tokenizer does.
_FIRST_SPACE = {"type": "Replace", "pattern": {"Regex": rf"\A[ {SPACE}]"}, "content": SPACE * 2}
_NOT_LEGACY: Mapping[str, Any] = {
    "normalizer": {"type": "Sequence", "normalizers": [_FIRST_SPACE, _SPACES]},
    "pre_tokenizer": {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first",
        "split": False,
    },
}
_T5_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_T5_WORDS = {
    "type": "Metaspace",
    "replacement": SPACE,
    "prepend_scheme": "always",
    "split": True,
}

Strips = Mapping[str, tuple[bool, bool]]
"""Special tokens, and whether each takes the white space on its left and on its right."""

BOTH = (True, True)


def read_as_slow_llama(tokenizer: Any, *, legacy: bool, strips: Strips) -> bool:
    """Changes `tokenizer` to read as transformers' slow `LlamaTokenizer` of 4.30 to 4.33 does.

    Args:
        tokenizer: transformers', of a LLaMA.
        legacy: whether text behind a special token gets a space in front, too.
        strips: by token; a token that is not in it takes the white space on both sides.

    Returns:
        Whether it is a tokenizer that the slow one could be: one made of sentencepiece's BPE.
    """
    state = _state(tokenizer)
    if not state["model"].get("byte_fallback"):
        return False
    for token in state["added_tokens"]:
        token["lstrip"], token["rstrip"] = strips.get(token["content"], BOTH)
        token["normalized"] = False
    _set_state(tokenizer, {**state, **(_LEGACY if legacy else _NOT_LEGACY)})
    return True


def read_as_fast_t5(tokenizer: Any, directory: Path) -> None:
    """Changes `tokenizer` to read as transformers' `T5TokenizerFast` of 4.33 does.

    It takes a `tokenizer.json` as it is, and makes one of a sentencepiece model that keeps a space
    at the end.

    Args:
        tokenizer: transformers', of a T5.
        directory: of the tokenizer's files.
    """
    state, file = _state(tokenizer), directory / "tokenizer.json"
    if file.exists():
        own = object_from_json(file)
        changes = {part: own.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")}
    else:
        normalizers = [*filter(None, [state["normalizer"]]), _T5_SPACES]
        normalizer = {"type": "Sequence", "normalizers": normalizers}
        changes = {"normalizer": normalizer, "pre_tokenizer": _T5_WORDS}
    _set_state(tokenizer, {**state, **changes})


def stripping_tokens(directory: Path) -> Strips:
    """Returns what the beginning, ending and unknown token strip, as its files have them.

    `special_tokens_map.json` counts before `tokenizer_config.json`. A token that is a plain string
    in the former strips both sides; in the latter, as without either, none.
    """
    strips = {}
    files = _read(directory / "special_tokens_map.json"), _read(directory / "tokenizer_config.json")
    for name, default in DEFAULT_TOKENS.items():
        mapped, configured = (file.get(name) for file in files)
        token = mapped or configured or default
        if isinstance(token, dict):
            sides = bool(token.get("lstrip")), bool(token.get("rstrip"))
            strips[str(token.get("content"))] = sides
        else:
            strips[str(token)] = BOTH if mapped else (False, False)
    return strips


DEFAULT_TOKENS: Mapping[str, str] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
}
"""Of `LlamaTokenizer`, where a directory names none."""


def is_legacy(directory: Path) -> bool:
    """Whether `tokenizer_config.json` leaves `legacy` on, which is the default of 4.33."""
    return _read(directory / "tokenizer_config.json").get("legacy") is not False


def _read(path: Path) -> Mapping[str, Any]:
    return object_from_json(path) if path.exists() else {}


def _state(tokenizer: Any) -> State:
    state: State = json.loads(tokenizer.backend_tokenizer.to_str())
    return state


def _set_state(tokenizer: Any, state: State) -> None:
    from tokenizers import Tokenizer

    read: Callable[[str], Any] = Tokenizer.from_str
    tokenizer._tokenizer = read(json.dumps(state))  # transformers has no public way
