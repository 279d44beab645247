"""`manifest.json`: what a build directory is, in one file.

    BUILD/
    ├── manifest.json
    ├── graphs/<component>/<graph>.onnx      with its weights beside it
    ├── engines/<component>/<graph>.plan     where the engine is TensorRT
    ├── engines/language_model/              where it is vLLM: a Hugging Face directory
    ├── text/tokenizer.json                  and qformer_tokenizer.json where the model has one
    └── model_repository/<model>/            what Triton serves

Knows numpy only: the server and the command line read it without the tracing libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from iblip.export.artifact.contract import Contract
from iblip.export.artifact.rebuild_command import rebuild_command
from iblip.export.errors import BuildDirectoryError

FORMAT = 4
"""The manifest's format number; a reader refuses any other."""

SLOTS = 8
"""Sequences at once, unless the build says otherwise."""

QUEUE = 256
"""Requests that may wait, unless the build says otherwise."""

BATCH = 8
"""Largest batch of vision encoder and Q-Former, in images, unless the build says otherwise."""

IMAGES = 4
"""Most images of a request, where a family takes several and the build says nothing: of a video,
InstructBLIP's own evaluation takes so many frames (arXiv 2305.06500)."""

MANIFEST = "manifest.json"

MEANS_NOTHING = "synthetic weights: answers mean nothing"
"""What every report of a build says whose checkpoint is synthetic (`export.synthesis`)."""

Images = Literal["one", "frames", "places"]
"""How many images a request may have: one; several, as the frames of a video are, one after another
before the prompt; or several, each at its own place in the prompt."""


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """One ONNX graph of a build.

    Attributes:
        path: relative to the build directory, of the `.onnx` file.
        weights: relative to the build directory, of every file that the graph's weights lie in.
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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            path=data["path"],
            weights=tuple(data["weights"]),
            digest=data["digest"],
            contract=Contract.from_json(data["contract"]),
        )


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """What runs a component.

    Attributes:
        kind: a key of `engines.kinds.KINDS` (`onnxruntime`, with a provider behind it, or
            `tensorrt` or `tensorrt-rtx`); of a language model, one of
            `engines.language_model.opening.ENGINES`.
        files: graph name to engine file, relative to the build directory. For ONNX Runtime these
            are the graphs themselves; for `vllm`, the files of a Hugging Face directory.
        details: what the builder knows: library version, targets, profile, seconds, bytes, the
            plan's key in the engine cache; for `vllm` how the model is spread, and its dtype.
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
        engine: what runs it.
        quantisation: as `export.quantisation.options.Quantisation.to_json` has it, with what was
            measured; empty where weights are not quantised.
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
        resample: the name of Pillow's filter, as in `PIL.Image.Resampling` (`"BICUBIC"`).
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
        qformer_tokenizer: the same for the Q-Former's instruction; `None` where it takes none.
        qformer_pad_token_id: fills `qformer_input_ids` where the mask is 0.
        max_instruction: longest instruction that the model's Q-Former takes, in tokens; 0 where it
            takes none. An engine may take less: `Manifest.max_instruction`.
        prompt_template: what stands around a user's `{prompt}`, and where the `{image}` is.
        stop: strings that end any answer, whatever a request asks for.
        images: how many a request may have, and where they go.
    """

    tokenizer: str
    qformer_tokenizer: str | None = None
    qformer_pad_token_id: int = 0
    max_instruction: int = 0
    prompt_template: str = "{image}{prompt}"
    stop: tuple[str, ...] = ()
    images: Images = "one"


@dataclass(frozen=True, kw_only=True)
class LanguageModelFacts:
    """The language model's shape and special tokens.

    Attributes:
        architecture: of the language model, as transformers calls it: `llama`, `opt` or `t5`.
        is_encoder_decoder: T5: the visual prompt and the text go to the encoder.
        hidden_size: of `visual_prompt` and `inputs_embeds`, in elements.
        num_layers, num_key_value_heads, head_dim: of the decoder's key-value cache.
        vocab_size: of the logits.
        num_query_tokens: rows of one image's visual prompt.
        max_length: positions for visual prompts, prompt and answer together. T5 has no limit of
            its own: the decoder's answer then counts alone against it.
        bos_token_id, pad_token_id, decoder_start_token_id: `None` where the model has none.
        eos_token_ids: any of these ends an answer.
        default_max_new_tokens: from the checkpoint's generation config, in tokens.
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


@dataclass(frozen=True, kw_only=True)
class ServingLimits:
    """How much a build takes on when it is served, chosen when it is made.

    Attributes:
        slots: sequences at once: a request's every answer or beam is one.
        max_length: positions of a sequence, as `LanguageModelFacts.max_length`, and at most that.
        queue: requests that may wait.
        images: of a request, at most.
        max_batch: images that one run of vision encoder or Q-Former takes, at most.
        max_instruction: tokens of an instruction, at most, where the Q-Former's engine is built for
            so many; `None` is as many as the model has.
    """

    slots: int
    max_length: int
    queue: int
    images: int
    max_batch: int = BATCH
    max_instruction: int | None = None


BUILT_IN = ("max_batch", "max_instruction", "max_images")
"""Limits that engines are built for: nothing but another build raises them."""


def how_to_raise(limit: str) -> str:
    """What to do about a field of `ServingLimits` that is too low, for messages."""
    flag = limit.replace("_", "-")
    if limit in BUILT_IN:
        return f"`--{flag}` of `export build` raises it"
    return f"`--{flag}` of `export build` or `{limit}` in language_model/config.pbtxt raises it"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that is known of a build.

    Attributes:
        name: of the checkpoint (`instructblip-demo-vicuna`).
        family: the kind of model (`instructblip`, `blip2`).
        source: `{"path", "digest", "files": {name: sha256}}` of the checkpoint, and `"synthetic"`
            where its weights are random.
        components: by name: `vision_encoder`, `qformer`, `language_model`.
        limits: of the language model when it is served.
        verification: what `verify` found, or `{"skipped": reason}`.
        tools: versions of the libraries that made the build.
        created: UTC, ISO 8601.
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

    @property
    def synthetic(self) -> bool:
        """The checkpoint's weights are random: see `MEANS_NOTHING`."""
        return bool(self.source.get("synthetic"))

    @property
    def max_instruction(self) -> int:
        """Tokens of the longest instruction that this build takes; 0 where it takes none."""
        most = self.limits.max_instruction
        own = self.text.max_instruction
        return own if most is None else min(most, own)

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
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        components = {
            name: ComponentRecord(
                precision=record["precision"],
                graphs={k: GraphRecord.from_json(g) for k, g in record["graphs"].items()},
                engine=EngineRecord(**record["engine"]),
                quantisation=record.get("quantisation", {}),
            )
            for name, record in data["components"].items()
        }
        facts = dict(data["language_model"])
        facts["eos_token_ids"] = tuple(facts["eos_token_ids"])
        text = {**data["text"], "stop": tuple(data["text"]["stop"])}
        return cls(
            name=data["name"],
            family=data["family"],
            source=data["source"],
            precision=data["precision"],
            components=components,
            preprocessing=Preprocessing(**data["preprocessing"]),
            text=TextFacts(**text),
            language_model=LanguageModelFacts(**facts),
            limits=ServingLimits(**data["limits"]),
            verification=data["verification"],
            tools=data["tools"],
            created=data["created"],
        )

    def write(self, directory: Path) -> None:
        """Writes `manifest.json` into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        (directory / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads the manifest of the build in `directory`.

        Raises:
            BuildDirectoryError: the directory is missing, is not a build, or was made by another
                format of this tool.
        """
        path = directory / MANIFEST
        hint = "Make one with `python -m export build --output DIR`."
        if not directory.is_dir():
            raise BuildDirectoryError(f"there is no directory {directory}. {hint}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            message = f"{directory} is not a build: it has no {MANIFEST}. {hint}"
            raise BuildDirectoryError(message) from None
        except OSError as error:
            raise BuildDirectoryError(f"{path} cannot be read ({error}). {hint}") from error
        except ValueError as error:
            raise BuildDirectoryError(f"{path} is not valid JSON ({error}). {hint}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            message = f"{path} has format {found!r}; this version reads {FORMAT}."
            again = f"Build it again, with its other options: `{rebuild_command(directory, data)}`."
            raise BuildDirectoryError(f"{message} {again}")
        try:
            return cls.from_json(data)
        except (AttributeError, KeyError, TypeError) as error:
            raise BuildDirectoryError(f"{path} is incomplete ({error!r}). {hint}") from error
