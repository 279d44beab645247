"""`manifest.json`: the description of a build directory.

    BUILD/
    ├── manifest.json
    ├── graphs/<component>/<graph>.onnx      with its weights beside it
    ├── engines/<component>/<graph>.plan     if the engine is TensorRT
    ├── engines/language_model/              if it is vLLM: a Hugging Face directory
    ├── text/tokenizer.json                  and qformer_tokenizer.json if the model has one
    ├── references/                          what its verification saw, for `iblip prove`
    └── model_repository/<model>/            what Triton serves

Knows numpy only: the server and the command line read it without the tracing libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.artifact.typed import from_fields
from iblip.export.errors import BuildDirectoryError, ContractError
from iblip.export.messages import printable, shown
from iblip.export.system.files import is_inside, refuse_irregular
from iblip.export.system.json_text import parse_json
from iblip.export.system.paths import PathLike, path_from

FORMAT = 6
"""The manifest's format number; a reader refuses any other."""

LANGUAGE_MODEL = "language_model"
"""The component that writes the answer."""

SLOTS = 8
"""Default number of sequences at once."""

QUEUE = 256
"""Default number of requests that may wait."""

MOST_RELATIVE = 32_768
"""Largest length of a T5's sequences. The encoder's memory grows with its square."""

BATCH = 8
"""Default largest batch of vision encoder and Q-Former, in images."""

IMAGES = 4
"""Default largest number of images in a request, if the family takes several. InstructBLIP's own
evaluation takes as many frames of a video (arXiv 2305.06500)."""

MANIFEST = "manifest.json"

MEANS_NOTHING = "synthetic weights: answers mean nothing"
"""Note in every report of a build whose checkpoint is synthetic (`export.synthesis`)."""

IN_BATCHES = ("vision_encoder", "qformer")
"""Components of one graph, `model`, which every build has."""

Images = Literal["one", "frames", "places"]
"""How many images a request may have: one; several before the prompt, in sequence, as frames of a
video; or several, each at its own place in the prompt."""


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """One ONNX graph of a build.

    Attributes:
        path: of the `.onnx` file, relative to the build directory.
        weights: paths of the files with the graph's weights, relative to the build directory.
        digest: sha256 over every weight's own sha256 and the graph's bytes, in hexadecimal
            (`export.graph.digest.graph_digest`).
        contract: its inputs and outputs.
    """

    path: str
    weights: tuple[str, ...]
    digest: str
    contract: Contract

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        return {
            "path": self.path,
            "weights": list(self.weights),
            "digest": self.digest,
            "contract": self.contract.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The engine of a component.

    Attributes:
        kind: a key of `engines.kinds.KINDS` (`onnxruntime`, with the suffix of a provider,
            `tensorrt` or `tensorrt-rtx`); for a language model, one of
            `engines.language_model.opening.ENGINES`.
        files: engine files by graph name, relative to the build directory. For ONNX Runtime these
            are the graphs themselves; for `vllm`, the files of a Hugging Face directory.
        details: facts of the build: library version, targets, profile, seconds, bytes, the plan's
            key in the engine cache; for `vllm`, parallelism and dtype.
    """

    kind: str
    files: Mapping[str, str]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ComponentRecord:
    """One component: its precision, its graphs by name, and its engine.

    `vision_encoder` and `qformer` have one graph, `model`. `language_model` has `embed_tokens` and
    `decoder`, and `encoder` where it is an encoder-decoder.

    Attributes:
        precision: a key of `export.precision.DTYPES`.
        graphs: by name.
        engine: that runs it.
        quantisation: as from `export.quantisation.options.Quantisation.to_json`, with what was
            measured; empty if weights are not quantised.
    """

    precision: str
    graphs: Mapping[str, GraphRecord]
    engine: EngineRecord
    quantisation: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a client must do to an image: decode, RGB, resize. The rest is inside the graph.

    Attributes:
        height, width: of the model's input, in pixels.
        resample: name of Pillow's filter in `PIL.Image.Resampling` (`"BICUBIC"`).
    """

    height: int
    width: int
    resample: str


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """How prompts become ids.

    Attributes:
        tokenizer: `tokenizers` file of the language model, relative to the build directory. Its
            post-processor adds the original's special tokens (BOS, or T5's closing EOS).
        qformer_tokenizer: the same for the Q-Former's instruction; `None` if it takes none.
        qformer_pad_token_id: fills `qformer_input_ids` where the mask is 0.
        qformer_vocab_size: of the Q-Former's token embeddings; 0 if it takes no instruction, and in
            builds of versions that did not record it.
        max_instruction: longest instruction that the model's Q-Former takes, in tokens; 0 if it
            takes none. An engine may take less: `Manifest.max_instruction`.
        prompt_template: text around a user's `{prompt}`, with the place of the `{image}`.
        stop: strings that end any answer, whatever a request asks for.
        images: how many a request may have, and where they belong.
        reproduces: the tokenizer whose ids `tokenizer` gives, where that is an original's: class,
            version of transformers and settings; empty if it is the checkpoint's own.
    """

    tokenizer: str
    qformer_tokenizer: str | None = None
    qformer_pad_token_id: int = 0
    qformer_vocab_size: int = 0
    max_instruction: int = 0
    prompt_template: str = "{image}{prompt}"
    stop: tuple[str, ...] = ()
    images: Images = "one"
    reproduces: str = ""


@dataclass(frozen=True, kw_only=True)
class LanguageModelFacts:
    """The language model's sizes and special tokens.

    Attributes:
        architecture: transformers' `model_type`, such as `llama`.
        is_encoder_decoder: whether visual prompt and text go to an encoder, as in T5.
        hidden_size: of `visual_prompt` and `inputs_embeds`, in elements.
        num_layers, num_key_value_heads, head_dim: of the decoder's key-value cache.
        vocab_size: of the logits.
        num_query_tokens: rows of one image's visual prompt.
        max_length: positions for visual prompts, prompt and answer together; a T5's, which prompt
            and answer have each for itself, are those that it was trained with.
        bos_token_id, pad_token_id, decoder_start_token_id: `None` if the model has none.
        eos_token_ids: tokens that end an answer.
        default_max_new_tokens: from the checkpoint's generation config, in tokens.
        start_token_id: the token that counts as generated before the first one of an answer, where
            the original's `generate` begins with it; `None` if there is none.
        bytes_apart: how byte tokens that make no character are decoded: each to a replacement
            character, as by sentencepiece and so by an original's slow tokenizer; or their whole
            run, valid bytes included, as by transformers today.
    """

    architecture: str
    is_encoder_decoder: bool
    hidden_size: int
    num_layers: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    num_query_tokens: int
    max_length: int
    bos_token_id: int | None
    pad_token_id: int | None
    decoder_start_token_id: int | None
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None
    default_max_new_tokens: int
    start_token_id: int | None = None
    bytes_apart: bool = False

    @property
    def most_positions(self) -> int:
        """The largest `ServingLimits.max_length` that may be chosen: the model's own length, or
        `MOST_RELATIVE` for a T5, whose positions are relative and have no end."""
        return MOST_RELATIVE if self.is_encoder_decoder else self.max_length


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """The limits of a build in serving, chosen when it is built.

    Attributes:
        slots: sequences at once; every answer or beam of a request is one.
        max_length: positions of a sequence, at most `LanguageModelFacts.max_length`.
        queue: requests that may wait.
        images: largest number of images in a request.
        max_batch: largest number of images in one run of vision encoder or Q-Former.
        max_instruction: largest number of tokens of an instruction, if the Q-Former's engine is
            built for fewer than the model takes; `None` is the model's own limit.
        max_prompt_bytes: largest number of bytes of a prompt, in UTF-8.
        max_option_bytes: largest number of bytes of a request's parameters, as JSON.
        max_logprobs: largest number of log-probabilities in the answers to a request.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before.
    """

    slots: int
    max_length: int
    queue: int
    images: int
    max_batch: int = BATCH
    max_instruction: int | None = None
    max_prompt_bytes: int = 16_384
    max_option_bytes: int = 262_144
    max_logprobs: int = 100_000
    prefix_cache: bool = True


BUILT_IN = ("max_batch", "max_instruction", "max_images")
"""Limits that engines are built for: only another build can raise them."""


def how_to_raise(limit: str) -> str:
    """Returns how to raise a field of `ServingLimits` that is too low, for messages."""
    flag = limit.replace("_", "-")
    if limit in BUILT_IN:
        return f"`--{flag}` of `iblip build` raises it"
    return f"`--{flag}` of `iblip build` or `{limit}` in instructblip/config.pbtxt raises it"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts of a build.

    Attributes:
        name: of the checkpoint (`instructblip-demo-vicuna`).
        family: the kind of model (`instructblip`, `blip2`).
        source: `{"path", "digest", "files": {name: sha256}}` of the checkpoint, and `"synthetic"`
            if its weights are random.
        components: by name: `vision_encoder`, `qformer`, `language_model`.
        limits: of the build in serving.
        verification: results of `verify`, or `{"skipped": reason}`.
        tools: versions of the libraries that were used.
        created: time of the build, UTC, ISO 8601.
        references: sha256 of the files of `export.artifact.references`, by path; empty in builds
            of versions that kept none.
    """

    name: str
    family: str
    source: Mapping[str, Any]
    precision: Mapping[str, str]
    components: Mapping[str, ComponentRecord]
    preprocessing: Preprocessing
    text: TextFacts
    language_model: LanguageModelFacts
    limits: ServingLimits
    verification: Mapping[str, Any]
    tools: Mapping[str, str]
    created: str
    references: Mapping[str, str] = field(default_factory=dict)

    @property
    def synthetic(self) -> bool:
        """Whether the checkpoint's weights are random; see `MEANS_NOTHING`."""
        return bool(self.source.get("synthetic"))

    @property
    def max_instruction(self) -> int:
        """Length of the longest instruction that this build takes, in tokens; 0 if none."""
        limit = self.limits.max_instruction
        own = self.text.max_instruction
        return own if limit is None else min(limit, own)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form that `from_json` reads back."""
        components = {
            name: {
                "precision": record.precision,
                "graphs": {key: graph.to_json() for key, graph in record.graphs.items()},
                "engine": asdict(record.engine),
                "quantisation": dict(record.quantisation),
            }
            for name, record in self.components.items()
        }
        return {
            "format": FORMAT,
            "name": self.name,
            "family": self.family,
            "source": dict(self.source),
            "precision": dict(self.precision),
            "components": components,
            "preprocessing": asdict(self.preprocessing),
            "text": asdict(self.text),
            "language_model": asdict(self.language_model),
            "limits": asdict(self.limits),
            "verification": dict(self.verification),
            "tools": dict(self.tools),
            "created": self.created,
            "references": dict(self.references),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is missing, unknown or of another type.
            ContractError: a tensor has a dtype or size that there is none of.
        """
        return from_fields(cls, {name: value for name, value in data.items() if name != "format"})

    def write(self, directory: Path) -> None:
        """Writes `manifest.json` into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        (directory / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: PathLike) -> Self:
        """Reads the manifest of the build in `directory`.

        Raises:
            BuildDirectoryError: the directory is missing, is not a build, or has a manifest of
                another format.
        """
        directory = path_from(directory, "directory")
        path = directory / MANIFEST
        hint = "Make one with `iblip build --output DIR`."
        if not directory.is_dir():
            raise BuildDirectoryError(f"there is no directory {directory}. {hint}")
        try:
            refuse_irregular(path)
            data = parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            message = f"{directory} is not a build: it has no {MANIFEST}. {hint}"
            raise BuildDirectoryError(message) from None
        except OSError as error:
            raise BuildDirectoryError(f"{path} cannot be read ({error}). {hint}") from error
        except ValueError as error:
            raise BuildDirectoryError(f"{path} is not valid JSON ({error}). {hint}") from error
        format_ = data.get("format") if isinstance(data, dict) else None
        if format_ != FORMAT:
            message = f"{path} has format {format_!r}; this version reads {FORMAT}."
            again = f"Build it again, with its other options: `{rebuild_command(directory, data)}`."
            raise BuildDirectoryError(f"{message} {again}")
        try:
            manifest = cls.from_json(data)
            _check(manifest, data)
        except (ContractError, ValueError) as error:
            raise BuildDirectoryError(
                f"{path} is incomplete or damaged: {error}. {hint}"
            ) from error
        return manifest


def _check(manifest: Manifest, data: Mapping[str, Any]) -> None:
    """Raises ValueError where the manifest is not of a whole build, or leaves its directory."""
    for name in IN_BATCHES:
        if name not in manifest.components:
            raise ValueError(f"there is no component {name}")
        if "model" not in manifest.components[name].graphs:
            raise ValueError(f"the component {name} has no graph")
    records = manifest.components.values()
    graphs = [graph for record in records for graph in record.graphs.values()]
    paths = [
        *(path for graph in graphs for path in (graph.path, *graph.weights)),
        *(path for record in records for path in record.engine.files.values()),
        *filter(None, (manifest.text.tokenizer, manifest.text.qformer_tokenizer)),
    ]
    outside = [path for path in paths if not is_inside(path)]
    if outside:
        raise ValueError(f"the file {shown(outside[0])} is outside of the build")
    for text in _strings({name: value for name, value in data.items() if name != "text"}):
        if printable(text) != text:
            raise ValueError(f"{shown(text)} has characters that no name has")


def _strings(data: Any) -> Iterator[str]:
    """Every key and value of JSON that is a string."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield key
            yield from _strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from _strings(value)
