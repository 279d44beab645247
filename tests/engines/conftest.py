"""What the tests of engines share: small graphs, small tokenizers, the facts of a small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
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

from export.checkpoint import checkpoint_from_directory
from export.contract import Contract, TensorSpec
from export.exporter import onnx_from_component
from export.families import components_from_checkpoint
from export.graphs import OnnxGraph, VerifiedGraph
from export.manifest import (
    ComponentRecord,
    EngineRecord,
    GraphRecord,
    LanguageModelFacts,
    Manifest,
)
from export.precision import COMPONENTS, parse_precision
from export.progress import Silent
from export.text import language_model_facts, preprocessing, write_tokenizers

SIDE, PATCH, WIDTH = 24, 12, 32
PATCHES = (SIDE // PATCH) ** 2
TEXT_DTYPES = {"float32": "float", "float16": "float16"}

# A vision encoder in small: preprocessing, patches, one attention, and a float32 island in it.
VISION = """
<ir_version: 10, opset_import: ["" : 20]>
vision (uint8[batch, {side}, {side}, 3] pixels) => ({dtype}[batch, {patches}, {width}] image_embeds)
<float[3] mean, float[3] std, {dtype}[{width}, 3, {patch}, {patch}] kernel,
 {dtype}[{width}, {width}] wq, {dtype}[{width}, {width}] wk, {dtype}[{width}, {width}] wv>
{{
    floats = Cast <to = 1> (pixels)
    scale = Constant <value_float = 255.0> ()
    unit = Div (floats, scale)
    centred = Sub (unit, mean)
    normal = Div (centred, std)
    channels = Transpose <perm = [0, 3, 1, 2]> (normal)
    image = Cast <to = {code}> (channels)
    patches = Conv <strides = [{patch}, {patch}]> (image, kernel)
    rows_shape = Constant <value_ints = [0, {width}, -1]> ()
    rows = Reshape (patches, rows_shape)
    x = Transpose <perm = [0, 2, 1]> (rows)
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    scores = MatMul (q, kt)
    wide = Cast <to = 1> (scores)
    shares = Softmax <axis = -1> (wide)
    narrow = Cast <to = {code}> (shares)
    mixed = MatMul (narrow, v)
    image_embeds = Add (x, mixed)
}}
"""


def write_vision_graph(directory: Path, dtype: str = "float32") -> OnnxGraph:
    """A vision-like graph with its weights in `weights.bin` beside it."""
    text = VISION.format(
        side=SIDE,
        patch=PATCH,
        patches=PATCHES,
        width=WIDTH,
        dtype=TEXT_DTYPES[dtype],
        code={"float32": 1, "float16": 10}[dtype],
    )
    model = parser.parse_model(text)
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / 16).astype(dtype)

    weights = {
        "mean": np.array([0.48, 0.46, 0.41], np.float32),
        "std": np.array([0.27, 0.26, 0.28], np.float32),
        "kernel": normal(WIDTH, 3, PATCH, PATCH),
        **{name: normal(WIDTH, WIDTH) for name in ("wq", "wk", "wv")},
    }
    del model.graph.initializer[:]
    for name, array in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    path = directory / "vision.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return OnnxGraph(
        component="vision_encoder",
        name="model",
        path=path,
        weights=(directory / "weights.bin",),
        precision={"float32": "fp32", "float16": "fp16"}[dtype],
        digest="0" * 64,
        contract=Contract(
            inputs=(TensorSpec(name="pixels", dtype="uint8", axes=("batch", SIDE, SIDE, 3)),),
            outputs=(TensorSpec(name="image_embeds", dtype=dtype, axes=("batch", PATCHES, WIDTH)),),
        ),
    )


@pytest.fixture
def vision_graph(tmp_path: Path) -> Callable[[str], OnnxGraph]:
    """`vision_graph("float16")`: a vision-like graph in a directory of its own."""

    def write(dtype: str = "float32") -> OnnxGraph:
        directory = tmp_path / dtype
        directory.mkdir()
        return write_vision_graph(directory, dtype)

    return write


@pytest.fixture
def proven() -> Callable[[OnnxGraph], VerifiedGraph]:
    return lambda graph: VerifiedGraph(graph=graph, figures={"max_abs": 0.0})


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


@pytest.fixture
def facts() -> Callable[..., LanguageModelFacts]:
    """`facts(vocab_size=…)`: of a small LLaMA, with what the test changes."""

    def make(**changes: Any) -> LanguageModelFacts:
        values: dict[str, Any] = {
            "architecture": "llama",
            "is_encoder_decoder": False,
            "hidden_size": 8,
            "num_layers": 1,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": 260,
            "num_query_tokens": 4,
            "max_length": 64,
            "bos_token_id": 257,
            "pad_token_id": None,
            "decoder_start_token_id": None,
            "eos_token_ids": (256,),
            "image_token_id": None,
            "default_max_new_tokens": 20,
        }
        return LanguageModelFacts(**{**values, **changes})

    return make


LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
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


def _random_checkpoint(kind: str, tokenizers: dict[str, Tokenizer], directory: Path) -> None:
    """A whole checkpoint with random weights, large enough that greedy tokens are not all one."""
    import torch
    import transformers

    text, config = {
        "llama": (LLAMA, transformers.LlamaConfig),
        "t5": (T5, transformers.T5Config),
    }[kind]
    vocab, qformer_vocab = (tokenizers[name].get_vocab_size() for name in (kind, "bert"))
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    whole = transformers.InstructBlipConfig(
        vision_config=transformers.InstructBlipVisionConfig(image_size=24, patch_size=12, **small),
        qformer_config=transformers.InstructBlipQFormerConfig(
            vocab_size=qformer_vocab, max_position_embeddings=40, encoder_hidden_size=32, **small
        ),
        text_config=config(vocab_size=vocab, **text),
        num_query_tokens=4,
        image_token_index=tokenizers[kind].token_to_id("<image>"),
    )
    torch.manual_seed(0)
    model = transformers.InstructBlipForConditionalGeneration(whole)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.15)
    model.save_pretrained(directory)
    names = {
        "llama": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
        "t5": {"eos_token": "</s>", "pad_token": "<pad>"},
        "bert": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    }
    fast, qformer = (
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers[name], **names[name])
        for name in (kind, "bert")
    )
    images = transformers.BlipImageProcessor(size={"height": 24, "width": 24})
    transformers.InstructBlipProcessor(images, fast, qformer, num_query_tokens=4).save_pretrained(
        directory
    )


def _build(source: Path, directory: Path, precision: str, parts: tuple[str, ...]) -> None:
    """A build of a checkpoint on ONNX Runtime, as `export build --no-verify` makes it."""
    checkpoint, policy = checkpoint_from_directory(source), parse_precision(precision)
    (directory / "graphs").mkdir(parents=True)
    graphs = [
        onnx_from_component(component, checkpoint, directory / "graphs", Silent())
        for component in components_from_checkpoint(checkpoint, policy)
        if component.component in parts
    ]
    components = {}
    for name in parts:
        records = {
            graph.name: GraphRecord(
                path=str(graph.path.relative_to(directory)),
                weights=tuple(str(path.relative_to(directory)) for path in graph.weights),
                digest=graph.digest,
                contract=graph.contract,
            )
            for graph in graphs
            if graph.component == name
        }
        files = {key: record.path for key, record in records.items()}
        components[name] = ComponentRecord(
            precision=policy[name],
            graphs=records,
            engine=EngineRecord(kind="onnxruntime", files=files),
        )
    Manifest(
        name="random",
        family=checkpoint.family,
        source={},
        precision=policy,
        components=components,
        preprocessing=preprocessing(checkpoint),
        text=write_tokenizers(checkpoint, directory),
        language_model=language_model_facts(checkpoint),
        verification={"skipped": "a test"},
        tools={},
        created="",
    ).write(directory)


@pytest.fixture(scope="session")
def random_checkpoint(
    tokenizers: dict[str, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`random_checkpoint("llama")`: a small checkpoint with random weights; made once."""

    @cache
    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(f"checkpoint-{kind}")
        _random_checkpoint(kind, tokenizers, directory)
        return directory

    return make


@pytest.fixture(scope="session")
def random_build(
    random_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`random_build("t5", "fp16", "qformer")`: of a random checkpoint, all of it or these parts.

    Made once, so a test must leave it as it is.
    """

    @cache
    def make(kind: str, precision: str = "fp32", *parts: str) -> Path:
        directory = tmp_path_factory.mktemp(f"build-{kind}-{precision}") / "build"
        _build(random_checkpoint(kind), directory, precision, parts or COMPONENTS)
        return directory

    return make
