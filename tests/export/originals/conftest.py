"""The demo checkpoints, rewritten into the files and names of LAVIS and MiniGPT-4."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

LAVIS = (
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("vision_model.post_layernorm", "ln_vision"),
    ("attention.attention", "attention.self"),  # of crossattention, too
    ("qformer.embeddings.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm"),
    ("qformer.", "Qformer.bert."),
)
"""What is replaced in transformers' names, one after another: as transformers' conversion script
does it the other way round, and so without the table that is tested."""

PROJECTIONS = {"llama": "llm_proj", "t5": "t5_proj", "opt": "opt_proj"}


@dataclass(frozen=True)
class Pair:
    """One model twice: a directory in Hugging Face form, and an original's parts."""

    directory: Path
    parts: Mapping[str, Path]

    @property
    def config(self) -> dict:
        return json.loads((self.directory / "config.json").read_text())


def without_key_biases(source: Path, directory: Path) -> Path:
    """A copy of a checkpoint whose ViT has no key biases, as EVA's.

    They change nothing: what they add to a query's scores is the same for every key. The demos'
    have drifted from 0 as far as an optimiser moves what has no gradient.
    """
    shutil.copytree(source, directory, symlinks=False)
    tensors = load_file(directory / "model.safetensors")
    for name, bias in tensors.items():
        if name.endswith("self_attn.qkv.bias"):
            bias[len(bias) // 3 : 2 * len(bias) // 3] = 0
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def lavis_names(tensors: Tensors, projection: str) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in LAVIS:
            if not name.startswith("language_"):
                name = name.replace(ours, theirs)
        name = name.replace("language_projection", projection)
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            renamed[name.replace("qkv.bias", "q_bias")] = query.clone()
            renamed[name.replace("qkv.bias", "v_bias")] = value.clone()
        else:
            renamed[name] = tensor
    return renamed


def split(tensors: Tensors, prefix: str) -> Tensors:
    """Takes out what begins with `prefix`, which is cut off."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}


def write_vit(vit: Tensors, path: Path) -> Path:
    """With what EVA's file has besides: another block, a norm and a head."""
    last = max(int(name.split(".")[1]) for name in vit if name.startswith("blocks."))
    more = {
        name.replace(f"blocks.{last}.", f"blocks.{last + 1}."): torch.full_like(tensor, 7.0)
        for name, tensor in vit.items()
        if name.startswith(f"blocks.{last}.")
    }
    width = vit["cls_token"].shape[-1]
    norm = {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    torch.save({**vit, **more, **norm, "head.weight": torch.zeros(3, width)}, path)
    return path


def write_language_model(tensors: Tensors, pair: Path, out: Path, *, form: str) -> Path:
    """A plain language model's directory, as the hub has them."""
    out.mkdir()
    text = json.loads((pair / "config.json").read_text())["text_config"]
    (out / "config.json").write_text(json.dumps(text))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pair / name, out)
    if form == "bin":
        torch.save(tensors, out / "pytorch_model.bin")
        return out
    names = sorted(tensors)
    pieces = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for piece, inside in pieces.items():
        save_file({name: tensors[name].contiguous() for name in inside}, out / piece)
    weight_map = {name: piece for piece, inside in pieces.items() for name in inside}
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    return out


def training_state(tensors: Tensors) -> dict:
    """As LAVIS's runner saves it."""
    return {
        "model": tensors,
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": []},
        "config": {"run": {"task": "vqa"}},
        "scaler": None,
        "epoch": 3,
    }


def as_on_the_hub(directory: Path) -> None:
    """LAVIS's tokenizer, converted: prompts to InstructBLIP's Vicuna begin with `</s>`."""
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    end = next(t["id"] for t in state["added_tokens"] if t["content"] == "</s>")
    state["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]}},
    }
    path.write_text(json.dumps(state))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "</s>"}))


def lavis_pair(source: Path, tmp: Path, *, form: str) -> Pair:
    """`source` as LAVIS keeps it: what the first stage of training has left is in it, too."""
    directory = without_key_biases(source, tmp / source.name)
    config = json.loads((directory / "config.json").read_text())
    kind = config["text_config"]["model_type"]
    tensors = lavis_names(load_file(directory / "model.safetensors"), PROJECTIONS[kind])
    language_model = split(tensors, "language_model.")
    vit = split(tensors, "visual_encoder.")
    tensors["Qformer.bert.embeddings.position_ids"] = torch.arange(8)[None]
    tensors["Qformer.cls.predictions.bias"] = torch.zeros(5)
    lavis, eva = tmp / "lavis" / "model.pth", tmp / "eva" / "model.pth"  # of one name
    for path in (lavis, eva):
        path.parent.mkdir()
    torch.save(training_state(tensors), lavis)
    parts = {
        "checkpoint": lavis,
        "vit": write_vit(vit, eva),
        "language_model": write_language_model(language_model, directory, tmp / "llm", form=form),
        "config": directory / "config.json",
    }
    if kind == "llama":
        as_on_the_hub(directory)
    if (directory / "qformer_tokenizer").exists():
        parts["qformer_tokenizer"] = directory / "qformer_tokenizer"
    return Pair(directory=directory, parts=parts)


def minigpt4_pair(source: Path, tmp: Path) -> Pair:
    """`source` as MiniGPT-4 keeps it: the Q-Former in BLIP-2's file, the projection in its own."""
    directory = without_key_biases(source, tmp / source.name)
    tensors = lavis_names(load_file(directory / "model.safetensors"), "llama_proj")
    language_model = split(tensors, "language_model.")
    vit = split(tensors, "visual_encoder.")
    projection = {name: tensors.pop(name) for name in list(tensors) if "llama_proj" in name}
    projection["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    parts = {
        "vit": write_vit(vit, tmp / "eva_vit_g.pth"),
        "language_model": write_language_model(language_model, directory, tmp / "llm", form="bin"),
        "config": directory / "config.json",
    }
    if any(name.startswith("Qformer.") for name in tensors):
        tensors["t5_proj.weight"] = torch.zeros(2, 2)
        torch.save({"model": tensors}, tmp / "blip2.pth")
        parts["qformer"] = tmp / "blip2.pth"
    else:
        projection |= tensors  # the LayerNorm behind the ViT, where it has been trained
    torch.save(training_state(projection), tmp / "minigpt4.pth")
    return Pair(directory=directory, parts={**parts, "projection": tmp / "minigpt4.pth"})


@pytest.fixture(scope="session")
def vicuna_pair(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The LLaMA demo; its language model in pieces of safetensors."""
    tmp = tmp_path_factory.mktemp("lavis")
    return lavis_pair(checkpoints / "instructblip-demo-vicuna", tmp, form="safetensors")


@pytest.fixture(scope="session")
def flant5_pair(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The T5 demo; its language model in pytorch_model.bin."""
    tmp = tmp_path_factory.mktemp("lavis")
    return lavis_pair(checkpoints / "instructblip-demo-flant5", tmp, form="bin")


@pytest.fixture(scope="session")
def opt_pair(
    random_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    """A small random BLIP-2 on OPT: quick to open, and for damage."""
    tmp = tmp_path_factory.mktemp("lavis")
    return lavis_pair(random_checkpoint("opt"), tmp, form="bin")


@pytest.fixture
def opt_parts(opt_pair: Pair, tmp_path: Path) -> dict[str, Path]:
    """Its parts, copied for the test to damage."""
    parts = {}
    for part, path in opt_pair.parts.items():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        parts[part] = Path(copy(path, tmp_path / f"{part}-{path.name}"))
    return parts


@pytest.fixture(scope="session")
def minigpt4_pairs(
    random_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[str, Pair]]:
    """`minigpt4_pairs("minigpt4-merge")`: what MiniGPT-4 calls it, and the two forms."""
    names = {"minigpt4": "vicuna7b", "minigpt4-merge": "llama2-7b"}

    @cache
    def make(kind: str) -> tuple[str, Pair]:
        pair = minigpt4_pair(random_checkpoint(kind), tmp_path_factory.mktemp("minigpt4"))
        return names[kind], pair

    return make


PAGES = Path(__file__).parents[3] / "docs"

PIECES = {"llama": 710, "t5": 611}
"""Pieces of a sentencepiece model that, with what the originals and transformers add, give the
`<image>` token the id that the tiny checkpoints have for it."""

SENTENCEPIECE = {
    # As LLaMA's own `tokenizer.model`, and as T5's `spiece.model`.
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    },
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
}
SENTENCEPIECE_FILES = {"llama": "tokenizer.model", "t5": "spiece.model"}
TOKENIZER_CONFIGS = {
    "llama": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "unk_token": "<unk>"},
    "t5": {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "extra_ids": 100},
}


@pytest.fixture(scope="session")
def sentencepiece_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small sentencepiece models of LLaMA's and T5's kind, trained on this project's pages."""
    from sentencepiece import SentencePieceTrainer

    pages = [page.read_text() for page in sorted(PAGES.glob("*.md"))]
    lines = [line for page in pages for line in page.splitlines() if line.strip()]
    models = {}
    for kind, settings in SENTENCEPIECE.items():
        path = tmp_path_factory.mktemp(kind) / SENTENCEPIECE_FILES[kind]
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(path.with_suffix("")),
            vocab_size=PIECES[kind],
            character_coverage=0.999,
            num_threads=1,
            minloglevel=2,
            **settings,
        )
        models[kind] = path
    return models


@pytest.fixture(scope="session")
def with_sentencepiece(sentencepiece_models: dict[str, Path]) -> Callable[..., Path]:
    """`with_sentencepiece(directory, "llama")`: its tokenizer becomes a sentencepiece model alone.

    Its configs are updated by `config`, of `tokenizer_config.json`, and `tokens`, the whole of
    `special_tokens_map.json`.
    """

    def replace(
        directory: Path, kind: str, config: Mapping | None = None, tokens: Mapping | None = None
    ) -> Path:
        (directory / "tokenizer.json").unlink(missing_ok=True)
        shutil.copy(sentencepiece_models[kind], directory)
        settings = {**TOKENIZER_CONFIGS[kind], **(config or {})}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        if tokens:
            (directory / "special_tokens_map.json").write_text(json.dumps(tokens))
        return directory

    return replace


@pytest.fixture(scope="session")
def tiny_pair(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Pair]:
    """`tiny_pair("vicuna")`: a tiny random InstructBLIP as LAVIS keeps it."""

    @cache
    def make(kind: str) -> Pair:
        return lavis_pair(tiny(kind), tmp_path_factory.mktemp("lavis"), form="bin")

    return make
