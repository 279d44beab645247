"""What tests of several rooms share: builds of the demo checkpoints, small random checkpoints."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.source import ModelSource
from iblip.export.graph.trace_cache import TraceCache
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, VerificationOptions
from iblip.serving.cli.quiet import quiet_libraries
from tests.environments import environment_with

EXAMPLES = 24
"""Held-out examples that a test build is verified with: all 500 are the benchmarks' business."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--every-example`: what is asked of some held-out examples is asked of all."""
    parser.addoption("--every-example", action="store_true", help="ask all held-out examples")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """vLLM's tests want an environment of several GB: they run where `-m` names them."""
    if "vllm" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("vllm")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """A file's tests stay with one worker, and all that start servers with another (`-n`)."""
    folder = item.path.parent.name
    item.add_marker(pytest.mark.xdist_group("e2e" if folder == "e2e" else str(item.path)))


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Plans and traces of the tests stay out of the user's own caches; all workers share them."""
    directory = _shared(tmp_path_factory) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IBLIP_CACHE", str(directory))
        yield directory


@pytest.fixture(scope="session")
def traces(caches: Path) -> TraceCache:
    """Traced graphs of all tests that do not look at tracing itself."""
    return TraceCache(caches / "traces")


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of this run, of all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def few_packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`few_packages("iblip")`: the Python of an environment with what that needs, and no more."""
    return lambda *roots: environment_with(tmp_path_factory.mktemp("few"), *roots)


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """The directory of the demo checkpoints."""
    return DEMO.parent


@pytest.fixture(scope="session")
def demo_build(
    checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`demo_build("minigpt4-demo")`: a verified fp32 build of a demo checkpoint, made once.

    Several workers share it: whoever comes first makes it.
    """
    builds = _shared(tmp_path_factory) / "builds"
    builds.mkdir(exist_ok=True)

    @cache
    def make(name: str) -> Path:
        with (builds / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = builds / name
            return found if found.exists() else _build(checkpoints / name, builds)

    return make


@pytest.fixture(scope="session")
def vicuna_build(demo_build: Callable[[str], Path]) -> Path:
    """A verified fp32 build of the LLaMA demo."""
    return demo_build("instructblip-demo-vicuna")


@pytest.fixture(scope="session")
def flant5_build(demo_build: Callable[[str], Path]) -> Path:
    """A verified fp32 build of the T5 demo."""
    return demo_build("instructblip-demo-flant5")


@pytest.fixture(scope="session")
def blip2_build(
    checkpoints: Path,
    random_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A verified fp32 build of a small random BLIP-2 on OPT."""
    parent = tmp_path_factory.mktemp("builds")
    return _build(random_checkpoint("opt"), parent, examples=checkpoints / "heldout")


def _build(model: Path, parent: Path, examples: Path | None = None) -> Path:
    quiet_libraries()
    options = BuildOptions(
        source=ModelSource(model=str(model)),
        output=parent / model.name,
        verification=VerificationOptions(examples=examples, limit=EXAMPLES),
    )
    return build(options)


CORPUS = [
    "What colour is the 3? The 3 is red, and it is on the left.",
    "How many digits are there? There are two digits: a 4 and a 7.",
    "Describe the image. It's a picture of three numbers; isn't it?",
    "naïve café — größer, Über, façade, señor, 你好 世界 こんにちは 🙂👍🏽",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def _special(*names: str) -> list[AddedToken]:
    return [AddedToken(name, special=True, normalized=False) for name in names]


def _llama() -> Tokenizer:
    """As LLaMA's: BPE with bytes for what is not in the vocabulary, spaces as U+2581, BOS first."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=60,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # The trainer makes the byte tokens special; in LLaMA's vocabulary they are ordinary.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in SPECIAL]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(_special("<image>"))
    return tokenizer


def _t5() -> Tokenizer:
    """As T5's: Unigram over words marked with U+2581, EOS last."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(_special("<extra_id_0>", "<image>"))
    return tokenizer


def _opt() -> Tokenizer:
    """As OPT's: BPE over bytes, `</s>` first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 2)]
    )
    return tokenizer


def _bert() -> Tokenizer:
    """As the Q-Former's: word pieces, lower case, `[CLS]` first and `[SEP]` last."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


TOKENIZERS = {"llama": _llama, "t5": _t5, "opt": _opt, "bert": _bert}


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """A small tokenizer of every kind, trained here."""
    return {name: make() for name, make in TOKENIZERS.items()}


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA = {
    **SMALL,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
OPT = {
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "pad_token_id": 3,
}
MINIGPT4_LLAMA = {**LLAMA, "max_position_embeddings": 128}
# Heads of opt-2.7b's size, norms where opt-350m has them, and what else the config allows.
OTHER_OPT = {
    **OPT,
    "hidden_size": 160,
    "num_attention_heads": 2,
    "do_layer_norm_before": False,
    "enable_bias": False,
    "layer_norm_elementwise_affine": False,
    "tie_word_embeddings": False,
}
# Heads of a size that vLLM's attention has on a CPU, too.
WIDE_OPT = {**OPT, "hidden_size": 128}


@dataclass(frozen=True)
class Kind:
    """A kind of random checkpoint: its family, its language model, whose tokenizer it takes.

    `seed` and `noise` are of its weights, such that its greedy tokens are not all one: tied
    embeddings make that likely.
    """

    family: str
    text: str
    settings: Mapping[str, Any]
    special: Mapping[str, str]
    seed: int = 0
    noise: float = 0.15


LLAMA_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
KINDS = {
    "llama": Kind("InstructBlip", "llama", LLAMA, LLAMA_SPECIAL),
    "t5": Kind("InstructBlip", "t5", T5, {"eos_token": "</s>", "pad_token": "<pad>"}),
    "opt": Kind("Blip2", "opt", OPT, {"pad_token": "<pad>"}, seed=3, noise=0.3),
    "wide-opt": Kind("Blip2", "opt", WIDE_OPT, {"pad_token": "<pad>"}, seed=3, noise=0.3),
    "other-opt": Kind("Blip2", "opt", OTHER_OPT, {"pad_token": "<pad>"}),
    "blip2-t5": Kind("Blip2", "t5", T5, {"eos_token": "</s>", "pad_token": "<pad>"}),
    "minigpt4": Kind("MiniGPT4", "llama", MINIGPT4_LLAMA, LLAMA_SPECIAL),
    "minigpt4-merge": Kind("MiniGPT4", "llama", MINIGPT4_LLAMA, LLAMA_SPECIAL, seed=1),
}


TEMPLATE = "###Human: <Img>{image}</Img> {prompt} ###Assistant: "


def _random_minigpt4(
    kind: Kind, tokenizers: dict[str, Tokenizer], directory: Path, *, merges: bool
) -> None:
    """A MiniGPT-4 in this project's form: transformers has no class that writes one."""
    import torch
    import transformers
    from safetensors.torch import save_file

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers[kind.text], **kind.special
    )
    vision = transformers.Blip2VisionConfig(image_size=48 if merges else 24, patch_size=12, **SMALL)
    text = transformers.LlamaConfig(vocab_size=len(tokenizer), **kind.settings)
    qformer = transformers.Blip2QFormerConfig(encoder_hidden_size=32, **SMALL)
    torch.manual_seed(kind.seed)
    parts: dict[str, torch.nn.Module] = {
        "vision_model": transformers.Blip2VisionModel(vision),
        "language_projection": torch.nn.Linear(4 * 32 if merges else 32, text.hidden_size),
        "language_model": transformers.LlamaForCausalLM(text),
    }
    tensors = {} if merges else {"query_tokens": torch.randn(1, 4, 32)}
    if not merges:
        parts["qformer"] = transformers.Blip2QFormerModel(qformer)
    for name, part in parts.items():
        for key, weight in part.state_dict().items():
            tensors[f"{name}.{key}"] = weight + torch.randn_like(weight) * kind.noise
    config = {
        "architectures": ["MiniGPT4ForConditionalGeneration"],
        "model_type": "minigpt4",
        "vision_config": vision.to_dict(),
        "qformer_config": None if merges else qformer.to_dict(),
        "text_config": text.to_dict(),
        "num_query_tokens": 4,
        "merged_patches": 4 if merges else None,
        "prompt_template": "<s>[INST] <Img>{image}</Img> {prompt} [/INST] " if merges else TEMPLATE,
        "stop": [] if merges else ["###"],
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    size = {"height": vision.image_size, "width": vision.image_size}
    transformers.BlipImageProcessor(size=size).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    transformers.GenerationConfig(max_new_tokens=20).save_pretrained(directory)


def _random_checkpoint(kind: Kind, tokenizers: dict[str, Tokenizer], directory: Path) -> None:
    """A whole checkpoint with random weights."""
    import torch
    import transformers

    reads = kind.family == "InstructBlip"  # a Q-Former that reads the instruction
    processor = _processor(kind, tokenizers, reads=reads)
    text = dict(kind.settings)
    if kind.text == "opt":  # an answer ends with a line break, as in BLIP-2's own config
        text["eos_token_id"] = processor.tokenizer("\n", add_special_tokens=False).input_ids[0]
    qformer = {
        "vocab_size": tokenizers["bert"].get_vocab_size(),
        "max_position_embeddings": 40,
        "encoder_hidden_size": 32,
    }
    config = getattr(transformers, f"{kind.family}Config")(
        vision_config={"image_size": 24, "patch_size": 12, **SMALL},
        qformer_config={**(qformer if reads else {"encoder_hidden_size": 32}), **SMALL},
        text_config={"model_type": kind.text, "vocab_size": len(processor.tokenizer), **text},
        num_query_tokens=4,
        image_token_index=processor.tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(kind.seed)
    model = getattr(transformers, f"{kind.family}ForConditionalGeneration")(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * kind.noise)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


def _processor(kind: Kind, tokenizers: dict[str, Tokenizer], *, reads: bool) -> Any:
    import transformers

    def fast(name: str, special: Mapping[str, str]) -> Any:
        if name != "opt":
            tokenizer = tokenizers[name]
            return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
        model = json.loads(tokenizers[name].to_str())["model"]
        merges = [tuple(pair) for pair in model["merges"]]
        end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
        return transformers.GPT2Tokenizer(
            vocab=model["vocab"], merges=merges, add_bos_token=True, **end, **special
        )

    parts = [
        transformers.BlipImageProcessor(size={"height": 24, "width": 24}),
        fast(kind.text, kind.special),
    ]
    if reads:
        named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        parts.append(fast("bert", named))
    return getattr(transformers, f"{kind.family}Processor")(*parts, num_query_tokens=4)


@pytest.fixture(scope="session")
def random_checkpoint(
    tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`random_checkpoint("opt")`: a small checkpoint of a kind of `KINDS`, made once."""

    @cache
    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(f"checkpoint-{kind}")
        if KINDS[kind].family == "MiniGPT4":
            merges = kind.endswith("merge")
            _random_minigpt4(KINDS[kind], tokenizers, directory, merges=merges)
        else:
            _random_checkpoint(KINDS[kind], tokenizers, directory)
        return directory

    return make
