"""`--adapter DIR` and `--adapter ORG/NAME[@REV]`: an adapter of peft, without reading a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iblip.export.adapters.config import LoraConfig
from iblip.export.adapters.names import find_name, part_from_name
from iblip.export.checkpoint.directory import (
    ADAPTER_CONFIG,
    ADAPTER_FORMS,
    TOKENIZERS,
    VOCABULARIES,
    has_tokenizer,
    refuse_irregular_files,
    tensors_of_forms,
)
from iblip.export.checkpoint.source import AdapterName
from iblip.export.errors import OptionError
from iblip.export.originals.vocabulary import TABLES
from iblip.export.progress import Progress
from iblip.export.weights.weight import Weight

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""Files that it may have beside them."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter of peft.

    Attributes:
        name: opens the same adapter again, from any directory.
        directory: absolute path.
        config: what its config says.
        tensors: by their names in its file.
    """

    name: AdapterName
    directory: Path
    config: LoraConfig
    tensors: Mapping[str, Weight]

    @cached_property
    def tokenizers(self) -> Mapping[str, Path]:
        """Directory of each tokenizer that it has, by the processor's name for it."""
        folders = {name: self.directory / folder for name, folder in TOKENIZERS.items()}
        return {name: folder for name, folder in folders.items() if has_tokenizer(folder)}

    @property
    def rows(self) -> int | None:
        """Rows of the embeddings that it has whole; `None` if it has none."""
        parts = ((part_from_name(own), tensor) for own, tensor in self.tensors.items())
        tables = (
            tensor.shape[0]
            for part, tensor in parts
            if part.is_whole and find_name(f"{part.module}.{part.kind}", TABLES)
        )
        return next(tables, None)

    @property
    def files(self) -> Sequence[Path]:
        """Every file that a build follows from: config, weights, tokenizers."""
        weights = {source.file for tensor in self.tensors.values() for source in tensor.sources}
        texts = [
            folder / name
            for folder in self.tokenizers.values()
            for name in (*VOCABULARIES, *SETTINGS)
            if (folder / name).exists()
        ]
        return [self.directory / ADAPTER_CONFIG, *sorted(weights), *texts]


def adapter_from_name(name: AdapterName, progress: Progress, *, weights: bool = True) -> Adapter:
    """Opens an adapter. No weight is read.

    Args:
        name: of the adapter.
        progress: reports a download.
        weights: whether an adapter of the hub is downloaded. Otherwise only the headers of its
            safetensors files are, and its files may not be there yet.

    Raises:
        OptionError: there is no such directory.
        CheckpointError: it is not of LoRA, has an option that is not supported, or cannot be read
            or downloaded.
    """
    if not name.is_on_hub:
        directory = Path(name.place).absolute()
        if not directory.is_dir():
            raise OptionError(
                f"there is no adapter directory {directory}. Give --adapter a directory that peft's"
                " `save_pretrained` wrote (with adapter_config.json and weights), or an adapter of"
                " the hub (ORG/NAME or ORG/NAME@REVISION)."
            )
        refuse_irregular_files(directory)
        return Adapter(
            name=AdapterName(place=str(directory)),
            directory=directory,
            config=LoraConfig.read(directory),
            tensors=tensors_of_forms(directory, ADAPTER_FORMS),
        )
    from iblip.export.checkpoint.hub import ADAPTER, directory_from_hub

    snapshot = directory_from_hub(
        name.place, name.revision, progress, weights=weights, contents=ADAPTER
    )
    config = LoraConfig.read(snapshot.directory)  # before what else may be missing
    return Adapter(
        name=AdapterName(place=name.place, revision=snapshot.commit),
        directory=snapshot.directory,
        config=config,
        tensors=tensors_of_forms(snapshot.directory, ADAPTER_FORMS, snapshot.pieces),
    )
