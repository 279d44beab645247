"""`--model lavis:NAME` and `--model minigpt4:NAME`: an original's files to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.directory import refuse_irregular_files, tensors_from_directory
from iblip.export.checkpoint.safetensors import tensors_from_safetensors
from iblip.export.checkpoint.torch_files import tensors_from_torch_file
from iblip.export.models.model import Model
from iblip.export.originals import names
from iblip.export.originals.assembled import Assembled, assemble
from iblip.export.originals.configs import config_from_file, config_of
from iblip.export.originals.joining import File
from iblip.export.originals.parts import check_parts, model_of, wrong_parts
from iblip.export.weights.weight import Ones, Weight, Zeros

OWN_VIT = ("vision_model.embeddings.", "vision_model.encoder.")


def checkpoint_from_original(scheme: str, name: str, parts: Mapping[str, Path]) -> Assembled:
    """Opens the files of one model of LAVIS or MiniGPT-4. No weight is read.

    Args:
        scheme: `lavis` or `minigpt4`.
        name: as LAVIS or MiniGPT-4 calls it: `blip2_vicuna_instruct/vicuna7b`, `vicuna7b`.
        parts: files and directories by part, as `export.originals.parts` lists them.

    Raises:
        OptionError: the name is not known, or a part is missing or unknown.
        CheckpointError: a part cannot be read, or the parts do not make the model.
    """
    model = model_of(scheme, name)
    check_parts(model, parts)
    parts = {part: path.resolve() for part, path in parts.items()}
    for directory in filter(Path.is_dir, parts.values()):
        refuse_irregular_files(directory)
    if "config" in parts:
        config = config_from_file(model, parts["config"])
    else:
        config = config_of(model, parts["language_model"])
    files = SCHEMES[scheme](model, parts, config)
    if "vit" not in parts and not any("visual_encoder.cls_token" in f.tensors for f in files):
        raise wrong_parts(model, ["vit"])
    return assemble(scheme, model, parts, files, config)


Parts = Mapping[str, Path]


def _lavis(model: Model, parts: Parts, config: Any) -> Sequence[File]:
    """LAVIS's checkpoint comes last: what it has of ViT and language model was trained on.

    LAVIS overlays it on the model of its configuration in the same way (`base_model.py`,
    `load_checkpoint`): what was frozen comes from there.
    """
    kind = model.text["model_type"]
    projector = model.family.projector
    branch = () if projector == "instruction_qformer" else names.TEXT_BRANCH
    checkpoint = File(
        part="checkpoint",
        tensors=_tensors(parts["checkpoint"]),
        names=names.whole(projector, *names.PREFIXES[kind]),
        unused=(*names.HEADS, *branch),
    )
    return *_shared(model, parts, config), *_base(checkpoint, parts), checkpoint


def _minigpt4(model: Model, parts: Parts, config: Any) -> Sequence[File]:
    """MiniGPT-4's checkpoint comes last, for the same reason.

    Without a Q-Former there is no file that has the LayerNorm behind the ViT: MiniGPT-4 then runs a
    new one, which changes nothing but the scale.
    """
    known = names.whole("qformer", *names.MINIGPT4_PREFIXES)
    unused = (*names.HEADS, *names.TEXT_BRANCH, names.EIGHT_BITS)
    projection = File(
        part="projection",
        tensors=_tensors(parts["projection"]),
        names=known,
        unused=unused,
    )
    trained = *_base(projection, parts), projection
    if "qformer" not in parts:
        return *_shared(model, parts, config), _fresh_norm(config), *trained
    qformer = File(
        part="qformer",
        tensors=_tensors(parts["qformer"]),
        names=known,
        unused=(*unused, names.OTHER_LANGUAGE_MODEL),
        owns=("vision_model.post_layernorm.", "qformer.", "query_tokens"),
    )
    return *_shared(model, parts, config), qformer, *trained


def _base(trained: File, parts: Parts) -> Sequence[File]:
    """The file that `trained` was trained from, of the same names; none if there is no such part.

    Whatever neither has is reported as missing in `trained`.
    """
    if "base" not in parts:
        return ()
    return (replace(trained, part="base", tensors=_tensors(parts["base"]), owns=()),)


SCHEMES: Mapping[str, Callable[[Model, Parts, Any], Sequence[File]]] = {
    "lavis": _lavis,
    "minigpt4": _minigpt4,
}
"""What `--model` begins with, to what reads its parts."""


def _shared(model: Model, parts: Parts, config: Any) -> Sequence[File]:
    """The language model and the ViT, which come as others have published them."""
    language_model = File(
        part="language_model",
        tensors=_tensors(parts["language_model"]),
        names=names.LANGUAGE_MODEL[model.text["model_type"]],
        owns=("language_model.",),
    )
    if "vit" not in parts:
        return (language_model,)
    vit = File(
        part="vit",
        tensors=_tensors(parts["vit"]),
        names=names.VIT,
        unused=(
            names.CLASSIFIER,
            names.PRETRAINING,
            names.last_blocks(config.vision_config.num_hidden_layers),
        ),
        owns=OWN_VIT,
    )
    return language_model, vit


def _fresh_norm(config: Any) -> File:
    """A LayerNorm that has learnt nothing."""
    shape = (config.vision_config.hidden_size,)
    tensors: Mapping[str, Weight] = {
        "ln_vision.weight": Ones(name="ln_vision.weight", dtype="float32", shape=shape),
        "ln_vision.bias": Zeros(name="ln_vision.bias", dtype="float32", shape=shape),
    }
    return File(
        part="projection",
        tensors=tensors,
        names=names.whole("qformer", *names.MINIGPT4_PREFIXES),
    )


WRAPPERS = ("module.", "_orig_mod.")
"""What distributed training and `torch.compile` put in front of every name, where a run saves the
wrapper's state and not the model's."""


def _tensors(path: Path) -> Mapping[str, Weight]:
    if path.is_dir():
        return tensors_from_directory(path)
    safe = path.suffix == ".safetensors"
    tensors = (tensors_from_safetensors if safe else tensors_from_torch_file)(path)
    while wrapper := next((one for one in WRAPPERS if _all_begin(tensors, one)), None):
        tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _all_begin(tensors: Mapping[str, Weight], prefix: str) -> bool:
    return bool(tensors) and all(name.startswith(prefix) for name in tensors)
