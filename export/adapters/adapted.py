"""`Adapted`: a checkpoint with adapters merged into its tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from iblip.export.adapters.names import UNUSED, Part, find_name, part_from_name
from iblip.export.adapters.reading import Adapter
from iblip.export.checkpoint.checkpoint import Checkpoint, resize
from iblip.export.components.graphs_of_checkpoint import components_from_checkpoint
from iblip.export.errors import CheckpointError
from iblip.export.families.parts import Parts
from iblip.export.messages import listed, nearest, shown
from iblip.export.originals.joining import expected_tensors
from iblip.export.originals.vocabulary import TABLES, set_vocabulary
from iblip.export.precision import PrecisionPolicy
from iblip.export.system.files import sha256
from iblip.export.weights.fit import is_harmless
from iblip.export.weights.merging import Added, merge_low_rank
from iblip.export.weights.weight import Concatenated, Weight


@dataclass(frozen=True, kw_only=True)
class Adapted(Checkpoint):
    """A checkpoint with adapters. Its `directory` is the base's.

    Attributes:
        base: the checkpoint without them.
        adapters: in the order in which they are merged.
    """

    base: Checkpoint
    adapters: tuple[Adapter, ...]

    @property
    def config_file(self) -> Path:
        """The base's."""
        return self.base.config_file

    @property
    def beside(self) -> tuple[Path, ...]:
        """The adapters' files."""
        return tuple(file for adapter in self.adapters for file in adapter.files)

    @cached_property
    def processor(self) -> Any:
        """The base's, with the tokenizers of the last adapter that has any of its own.

        Raises:
            CheckpointError: a tokenizer cannot be loaded, or has other tokens than those that the
                embeddings are of.
        """
        processor, changed = self.base.processor, False
        for adapter in self.adapters:
            own = _processor_of(adapter, processor)
            if changed:
                _check_tokens(adapter, processor, own)
            processor, changed = own, changed or "tokenizer" in adapter.tokenizers
        resize(processor.image_processor, self.config.vision_config.image_size)
        return processor

    def digests(self, known: Mapping[Path, str] | None = None) -> dict[str, str]:
        """Returns the sha256 of the base's files and the adapters', in hexadecimal.

        An adapter's are called `adapter-1/adapter_model.safetensors`.

        Args:
            known: digests that have been computed already, by path.
        """
        digests = self.base.digests(known)
        for number, adapter in enumerate(self.adapters, 1):
            for file in adapter.files:
                name = f"adapter-{number}/{file.relative_to(adapter.directory)}"
                digests[name] = (known or {}).get(file) or sha256(file)
        return digests


def adapt(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Adapted:
    """Merges adapters into a checkpoint's tensors, in order. No weight is read.

    Each is merged into what those before it made, as peft's `merge_and_unload` in turn would.

    Raises:
        CheckpointError: a tensor of an adapter belongs to no graph or does not fit its weight, or
            its tokenizer has tokens that no row of the embeddings is for.
    """
    shapes, tied = expected_tensors(components_from_checkpoint(checkpoint, PrecisionPolicy()))
    tensors = dict(checkpoint.tensors)
    for adapter in adapters:
        tensors = _Merging(adapter, tensors, tied, {*shapes, *tied}).merge()
        _check_one_table(adapter, checkpoint.tensors, tensors)
    plain = {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
    rules = checkpoint.rules
    if any("tokenizer" in adapter.tokenizers for adapter in adapters):
        rules = replace(rules, tokenizer="", bytes_apart=False)  # the adapter's own counts
    config = copy.deepcopy(checkpoint.config)
    adapted = Adapted(
        **{**plain, "tensors": tensors, "config": config, "rules": rules},
        base=checkpoint,
        adapters=tuple(adapters),
    )
    if any(adapter.tokenizers for adapter in adapters) or _has_other_rows(checkpoint, tensors):
        set_vocabulary(adapted.config, tensors, adapted.processor)
        _check_vocabulary(adapted)
    return adapted


IGNORED = (
    "A tensor that no graph reads would be ignored, and answers would change: was the adapter"
    " trained on another model?"
)

T5_TABLES = ("language_model.shared.weight", "language_model.decoder.embed_tokens.weight")
"""T5's embeddings of prompts and of answers, which are one table in its graphs."""


def _check_one_table(
    adapter: Adapter, before: Mapping[str, Weight], after: Mapping[str, Weight]
) -> None:
    changed = [name for name in T5_TABLES if after.get(name) != before.get(name)]
    tables = {after[name] for name in T5_TABLES if name in after}
    if changed and len(tables) > 1:
        raise CheckpointError(
            f"--adapter {adapter.name} changes {' and '.join(changed)}: peft makes two tables of"
            " T5's embeddings, of prompts and of answers, and its graphs have one. Train the"
            " adapter without the embeddings."
        )


def _has_other_rows(checkpoint: Checkpoint, tensors: Mapping[str, Weight]) -> bool:
    return any(
        tensors[name].shape != checkpoint.tensors[name].shape
        for name in TABLES
        if name in checkpoint.tensors
    )


def _check_vocabulary(adapted: Adapted) -> None:
    sizes = {n: adapted.tensors[n].shape[0] for n in TABLES if n in adapted.tensors}
    if len(set(sizes.values())) > 1:
        rows_of = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise CheckpointError(
            f"with the adapters, not all tables of the language model have one number of rows:"
            f" {rows_of}. An adapter has the one table for its added tokens, and lacks the other."
            " Train it with both (embeddings and lm_head) in `modules_to_save`."
        )
    tokens, rows = len(adapted.processor.tokenizer), adapted.config.text_config.vocab_size
    if tokens > rows:
        raise CheckpointError(
            f"the tokenizer of --adapter {adapted.adapters[-1].name} has {tokens} tokens, and the"
            f" language model's embeddings have {rows} rows: the adapter lacks the embeddings of"
            " its added tokens. Save it with peft's `save_embedding_layers=True`."
        )


def _load_tokenizer(folder: Path) -> Any:
    import transformers

    kind: Any = transformers.AutoTokenizer
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def _processor_of(adapter: Adapter, before: Any) -> Any:
    """The processor `before`, with the adapter's own tokenizers."""
    tokenizers = {
        name: _load_tokenizer(folder)
        for name, folder in adapter.tokenizers.items()
        if hasattr(before, name)
    }
    return _with_tokenizers(before, tokenizers) if tokenizers else before


def _check_tokens(adapter: Adapter, before: Any, own: Any) -> None:
    """Refuses a tokenizer that lacks tokens which an earlier adapter has added, or has others."""
    tokens, known = (it.tokenizer.get_vocab() for it in (own, before))
    if adapter.rows is not None or tokens == known:
        return
    other = [token for token, number in known.items() if tokens.get(token) != number]
    if other:
        raise CheckpointError(
            f"the tokenizer of --adapter {adapter.name} has no {shown(other[0])}, or as another"
            " token, which what it is merged into has; and the adapter has no embeddings of its"
            " own. If it was trained without that token, remove the tokenizer from its directory."
        )


def _with_tokenizers(processor: Any, tokenizers: Mapping[str, Any]) -> Any:
    if isinstance(processor, Parts):
        return replace(processor, **tokenizers)
    names = [name for name in ("tokenizer", "qformer_tokenizer") if hasattr(processor, name)]
    parts = {name: getattr(processor, name) for name in ("image_processor", *names)}
    # Anew, as its constructor gives the tokenizer the token that stands for the image.
    return type(processor)(**{**parts, **tokenizers}, num_query_tokens=processor.num_query_tokens)


@dataclass
class _Module:
    """What an adapter has of one weight.

    Attributes:
        name: of the module in the model that was trained, or of its parameter if LoRA was trained
            on that alone.
        parts: by `Part.kind`.
    """

    name: str
    parts: dict[str, Weight] = field(default_factory=dict)


class _Merging:
    """Merges one adapter.

    Args:
        adapter: that is merged.
        tensors: of the checkpoint, by name.
        tied: as `export.originals.joining.expected_tensors` returns them.
        names: of every weight that a graph may read.
    """

    def __init__(
        self,
        adapter: Adapter,
        tensors: Mapping[str, Weight],
        tied: Mapping[str, str],
        names: set[str],
    ) -> None:
        self._adapter, self._config, self._tied = adapter, adapter.config, tied
        self._tensors, self._names = dict(tensors), names
        self._modules: dict[str, list[str]] = {}  # to the names of their own parameters
        for name in names:
            module, _, parameter = name.rpartition(".")
            self._modules.setdefault(module, []).append(parameter)
        self._faults: list[str] = []  # in words; and those of tensors that no graph reads
        self._unread: list[str] = []

    def merge(self) -> dict[str, Weight]:
        """Returns the checkpoint's tensors with the adapter's merged into them.

        Raises:
            CheckpointError: listing every tensor of the adapter that cannot be merged.
        """
        modules: dict[str, _Module] = {}
        for own, tensor in self._adapter.tensors.items():
            part = part_from_name(own)
            if UNUSED in own:
                continue
            if part.is_whole:
                self._put_whole(own, part, tensor)
            elif found := self._find_weight(own, part):
                name, trained = found
                modules.setdefault(name, _Module(trained)).parts[part.kind] = tensor
        for name, module in modules.items():
            try:
                self._merge_module(name, module)
            except CheckpointError as error:
                self._faults.append(str(error))
        if faults := [*self._unread, *self._faults]:
            summary = f"--adapter {self._adapter.name} does not fit the model"
            ignored = f"\n{IGNORED}" if self._unread else ""
            raise CheckpointError(f"{summary}:\n  {listed(faults)}{ignored}")
        return self._tensors

    def _put_whole(self, own: str, part: Part, tensor: Weight) -> None:
        """Replaces a parameter that was trained whole, or saved because it was resized."""
        trained = f"{part.module}.{part.kind}"
        name = find_name(trained, self._names)
        if name is None and not is_harmless(trained):
            self._unread.append(f"{own} is read by no graph{nearest(trained, self._names)}")
        elif name is not None:
            old = self._get(name)
            if old is not None and old.shape != tensor.shape and name not in TABLES:
                self._faults.append(
                    f"{own} has shape {list(tensor.shape)}, expected {list(old.shape)}"
                )
            # peft trains a copy of a module that it saves; a resized table stays tied to others.
            # Its bytes are copied: links would lead into a directory that training writes to.
            copied = Concatenated(name=tensor.name, parts=(tensor,))
            self._put(name, copied, alone=self._config.saves(part.module))

    def _find_weight(self, own: str, part: Part) -> tuple[str, str] | None:
        """The name of the weight that a part of a LoRA is for, and the `_Module.name` of it."""
        module = find_name(part.module, self._modules)
        if module is None:
            near = nearest(part.module, self._modules, "nearest module")
            self._unread.append(f"{own} is for a module that no graph has{near}")
            return None
        targets = [
            parameter
            for parameter in self._modules[module]
            if self._config.targets(f"{part.module}.{parameter}")
        ]
        if not targets:
            return f"{module}.weight", part.module
        if len(targets) > 1:
            self._faults.append(f"{own} may be for any of {', '.join(sorted(targets))}")
            return None
        return f"{module}.{targets[0]}", f"{part.module}.{targets[0]}"

    def _merge_module(self, name: str, module: _Module) -> None:
        """Merges the matrices of one weight. Raises CheckpointError if they do not fit it."""
        source, parts = self._get(name), dict(module.parts)
        is_table = "lora_embedding_A" in parts
        stem = "lora_embedding_" if is_table else "lora_"
        up, down = (parts.pop(f"{stem}{letter}", None) for letter in "BA")
        magnitude, bias = parts.pop("lora_magnitude_vector", None), parts.pop("lora_B.bias", None)
        rank, scale = self._config.rank(module.name), self._config.scale(module.name)
        if source is None:
            raise CheckpointError(f"{name} is missing in the checkpoint")
        if up is None or down is None or parts:
            raise CheckpointError(
                f"{name} lacks one of LoRA's two matrices, or has others beside them"
            )
        if (magnitude is not None) != self._config.use_dora:
            said = "no " if magnitude is None else ""
            raise CheckpointError(f"{name} has {said}lengths of DoRA, unlike its config")
        if down.shape[:1] != (rank,):
            raise CheckpointError(f"{down.name} has shape {list(down.shape)}, expected rank {rank}")
        merged = merge_low_rank(
            source, up=up, down=down, scale=scale, transposed=is_table, magnitude=magnitude
        )
        self._put(name, merged, alone=True)
        if bias is not None:
            self._add_bias(f"{name.rpartition('.')[0]}.bias", bias, scale)

    def _add_bias(self, name: str, bias: Weight, scale: float) -> None:
        own = self._get(name)
        if own is None or own.shape != bias.shape:
            raise CheckpointError(f"{bias.name} is for a bias that the checkpoint has not: {name}")
        self._put(name, Added(source=own, other=bias, scale=scale), alone=True)

    def _get(self, name: str) -> Weight | None:
        return self._tensors.get(name) or self._tensors.get(self._tied.get(name, ""))

    def _put(self, name: str, weight: Weight, *, alone: bool) -> None:
        """Sets a tensor.

        Args:
            name: of the tensor.
            weight: that takes its place.
            alone: whether those that are tied to it stay what they were.
        """
        if not alone:
            self._tensors[name if name in self._tensors else self._tied.get(name, name)] = weight
            return
        for other, root in self._tied.items():
            if root == name and other not in self._tensors and name in self._tensors:
                self._tensors[other] = self._tensors[name]
        self._tensors[name] = weight
