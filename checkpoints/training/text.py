"""Tokenizers, trained on the corpus and saved the way the originals save theirs.

- LLaMA: byte-pair encoding with byte fallback, so any Unicode text comes back as it was.
- OPT: byte-level byte-pair encoding, `<s> <pad> </s> <unk>` first, `</s>` at the start of a text.
- T5: a unigram model with 100 sentinels and no byte fallback, as in the original.
- Q-Former: BERT's WordPiece, lower case, with `[DEC]` as a beginning-of-sequence token.
"""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    T5Tokenizer,
)

from .architecture import Vocabulary
from .corpus import tokenizer_corpus
from .prompts import FORMS, Form

IMAGE_TOKEN = "<image>"
BPE_SIZE, WORDPIECE_SIZE = 480, 480  # pieces besides the special ones
MAX_LENGTH = 1024  # tokens: the language model's positions
QFORMER_MAX_LENGTH = 128  # tokens: LAVIS cuts the Q-Former's text here

_ALPHABET = sorted({*string.printable[:95]} - {" "})


def train_llama_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-pair encoding: `<unk> <s> </s>`, 256 bytes, pieces, then `<pad>` and `<image>`."""
    model = json.loads(_trained_bpe().to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: number for number, piece in enumerate([*head, *pieces])}
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
        padding_side="left",
        add_bos_token=True,
    )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], True)
    return tokenizer


def train_opt_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE as OPT's, which is GPT-2's: `</s>` (2) begins a text and would end it.

    The line break that ends an answer is one token, because no merge crosses it.
    """
    head = ["<s>", "<pad>", "</s>", "<unk>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        _asked_and_answered(FORMS["blip2-opt"]),
        trainers.BpeTrainer(
            vocab_size=len(head) + 256 + BPE_SIZE - 95,  # 95 printable letters are among the bytes
            special_tokens=head,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    merges: list[Any] = [tuple(merge) for merge in model["merges"]]
    tokenizer = GPT2Tokenizer(
        vocab=model["vocab"],
        merges=merges,
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=MAX_LENGTH,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], True)
    return tokenizer


def _asked_and_answered(form: Form) -> Iterator[str]:
    """The corpus as a model of this form reads it: after each line its lead, here a space."""
    yield from (f"{form.lead}{line}" for line in tokenizer_corpus())
    yield from (form.question.format(question="") for _ in range(1000))


def train_t5_tokenizer() -> PreTrainedTokenizerBase:
    """A unigram model: `<pad> </s> <unk>`, pieces, 100 sentinels, then `<image>`.

    The pieces are the byte-pair ones; a piece's score is the logarithm of its share in the corpus
    (half an occurrence for letters that never stand alone there).
    """
    bpe = _trained_bpe()
    counts = Counter(piece for line in tokenizer_corpus() for piece in bpe.encode(line).tokens)
    total = sum(counts.values())
    scored = [
        (piece, math.log(max(counts[piece], 0.5) / total))
        for piece, _ in sorted(bpe.get_vocab().items(), key=lambda item: item[1])
    ]
    head = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    sentinels = [(f"<extra_id_{number}>", 0.0) for number in range(99, -1, -1)]
    tokenizer = T5Tokenizer(vocab=[*head, *scored, *sentinels], model_max_length=MAX_LENGTH)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], True)
    return tokenizer


def _trained_bpe() -> Tokenizer:
    """Pieces within words, punctuation apart: what both language tokenizers are made of."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    trained.train_from_iterator(
        tokenizer_corpus(),
        trainers.BpeTrainer(
            vocab_size=BPE_SIZE, initial_alphabet=[*_ALPHABET, "▁"], show_progress=False
        ),
    )
    return trained


def train_qformer_tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece as BERT's: `[PAD] [UNK] [CLS] [SEP] [MASK]`, pieces, then `[DEC]`."""
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=True)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(
        tokenizer_corpus(),
        trainers.WordPieceTrainer(
            vocab_size=WORDPIECE_SIZE,
            initial_alphabet=[letter.lower() for letter in _ALPHABET],
            special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
            show_progress=False,
        ),
    )
    return BertTokenizer(
        vocab=trained.get_vocab(),
        bos_token="[DEC]",
        model_max_length=QFORMER_MAX_LENGTH,
        truncation_side="left",
    )


def vocabulary(
    language: PreTrainedTokenizerBase,
    qformer: PreTrainedTokenizerBase,
    form: Form = FORMS["plain"],
) -> Vocabulary:
    """Sizes (rounded up to a multiple of 8) and special ids for the model's config.

    As in BLIP-2 on OPT, the end is the line break's id where that is how the form ends an answer.
    """
    line_break = language("\n", add_special_tokens=False)["input_ids"]
    return Vocabulary(
        size=-(-len(language) // 8) * 8,
        qformer_size=len(qformer),
        image=language.get_vocab()[IMAGE_TOKEN],
        pad=language.pad_token_id,
        eos=line_break[0] if form.end == "\n" else language.eos_token_id,
        bos=language.bos_token_id,
        qformer_pad=qformer.pad_token_id,
    )
