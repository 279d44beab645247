"""`build`: a checkpoint becomes a `Build`, a directory that can be loaded, served and verified."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from iblip.export.artifact.manifest import MEANS_NOTHING, Manifest
from iblip.export.errors import IblipError, OptionError
from iblip.export.messages import did_you_mean
from iblip.export.system.arguments import checked
from iblip.export.system.paths import PathLike, path_from
from iblip.libraries import installed, quiet
from iblip.markup import table_from_facts
from iblip.progress import ProgressOption, progress_from

if TYPE_CHECKING:
    from iblip.serving.builder.options import BuildOptions


@dataclass(frozen=True)
class Build:
    """A build directory. Wherever a path of a build is expected, it can be given in its place.

    Args:
        path: of the directory.

    Attributes:
        path: the same, absolute.
        manifest: everything that `manifest.json` holds: tensor contracts, digests, limits.

    Raises:
        BuildDirectoryError: the directory is missing, is not a build, or is of another format.
    """

    path: Path
    manifest: Manifest = field(init=False, repr=False, compare=False)

    def __init__(self, path: PathLike) -> None:
        object.__setattr__(self, "path", path_from(path, "the build").absolute())
        object.__setattr__(self, "manifest", Manifest.read(self.path))

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Name of the checkpoint, such as `instructblip-flan-t5-xl`."""
        return self.manifest.name

    @property
    def family(self) -> str:
        """`instructblip`, `blip2` or `minigpt4`."""
        return self.manifest.family

    @property
    def precision(self) -> Mapping[str, str]:
        """Precision of each component: `vision_encoder`, `qformer`, `language_model`."""
        return dict(self.manifest.precision)

    @property
    def engines(self) -> Mapping[str, str]:
        """What runs each component: `onnxruntime`, `onnxruntime-cuda`, `tensorrt`, `vllm`, …"""
        return {name: record.engine.kind for name, record in self.manifest.components.items()}

    @property
    def is_verified(self) -> bool:
        """Whether its graphs and answers were compared with transformers when it was made."""
        return "skipped" not in self.manifest.verification

    @property
    def created(self) -> str:
        """When it was made, in UTC, as ISO 8601."""
        return self.manifest.created

    def _facts(self) -> dict[str, str]:
        manifest, size = self.manifest, self.manifest.preprocessing
        limits, engines = manifest.limits, self.engines
        components = {
            name: f"{precision} on {engines[name]}"
            for name, precision in manifest.precision.items()
            if name in engines
        }
        skipped = manifest.verification.get("skipped")
        return {
            "path": str(self.path),
            "model": f"{self.family} on {manifest.language_model.architecture}",
            **components,
            "images": f"{size.height} x {size.width} pixels, at most {limits.images} a request",
            "sequences": f"{limits.slots} at once, {limits.max_length:,} positions each",
            "verified": f"no ({skipped})" if skipped else "yes, against transformers",
            "created": self.created,
            **({"note": MEANS_NOTHING} if manifest.synthetic else {}),
        }

    def _repr_html_(self) -> str:
        return table_from_facts(self.name, self._facts())


class BuildKeywords(TypedDict, total=False):
    """Options of a build that few callers need, as keywords of `build`.

    Attributes:
        triton_backend: what in Triton runs vision encoder and Q-Former: `auto`, `python`, `native`.
        gpu_memory: of the GPU that the build is for: bytes, or a text such as `"24GB"`; `None`
            takes this machine's GPU.
        int8: activations of an int8 vision encoder or Q-Former: `dynamic` or `static`.
        llm_int8: an int8 language model: `weights` alone, or `dynamic` activations too.
        calibration: directory of images to measure activations on; `None` takes the examples.
        block_size: weights of the language model that share a scale: 16, 32, 64, 128 or 256.
        asymmetric: whether each block also has a zero point.
        int4_method: rounding to four bits: `rtn` (to nearest) or `k-quant`.
        sensitive: share of MatMuls, from 0 to 1, that keep a higher precision: those with the
            largest error.
        targets: GPU families that plans are built for, such as `["sm86", "sm89"]`; empty is this
            machine's.
        builder_flags: flags of TensorRT's builder; `engines.tensorrt.options.FLAGS` lists them.
        workspace: most GPU memory for one layer of a plan, in MiB.
        max_batch: largest batch of vision encoder and Q-Former, in images.
        max_instruction: longest instruction of a TensorRT Q-Former, in tokens.
        opt_batch, opt_instruction: the sizes that plans are tuned for.
        profiles: TensorRT profiles, such as `["batch=1:4:8,instruction=1:32:128"]`.
        slots: sequences that the language model runs at once; every answer or beam is one.
        max_length: positions of a sequence: image, prompt and answer.
        max_images: most images of a request.
        queue: requests that may wait.
        max_prompt_bytes, max_option_bytes, max_logprobs: limits of a request to a server.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before.
        tensor_parallel, pipeline_parallel, executor, gpu_memory_utilization: of vLLM.
        engine_cache: directory of plans that builds share; `None` keeps none.
        trace_cache: directory of traced graphs that builds share; `None` keeps none.
    """

    triton_backend: str
    gpu_memory: int | str | None
    int8: Literal["dynamic", "static"] | None
    llm_int8: Literal["weights", "dynamic"]
    calibration: PathLike | None
    block_size: int
    asymmetric: bool
    int4_method: Literal["rtn", "k-quant"]
    sensitive: float | None
    targets: Iterable[str]
    builder_flags: Iterable[str]
    workspace: int | None
    max_batch: int | None
    max_instruction: int | None
    opt_batch: int | None
    opt_instruction: int | None
    profiles: Iterable[str]
    slots: int | None
    max_length: int | None
    max_images: int | None
    queue: int
    max_prompt_bytes: int
    max_option_bytes: int
    max_logprobs: int
    prefix_cache: bool
    tensor_parallel: int | None
    pipeline_parallel: int | None
    executor: str | None
    gpu_memory_utilization: float | None
    engine_cache: PathLike | None
    trace_cache: PathLike | None


@checked
def build(
    model: PathLike | None = None,
    *,
    precision: str = "fp32",
    output: PathLike | None = None,
    engine: str = "auto",
    llm_engine: str = "onnxruntime",
    revision: str | None = None,
    parts: Mapping[str, PathLike] | None = None,
    adapters: Iterable[PathLike] = (),
    lora_alpha: Mapping[str, float] | float | None = None,
    image_size: int | None = None,
    verify: bool = True,
    examples: PathLike | None = None,
    limit: int | None = None,
    force: bool = False,
    progress: ProgressOption = True,
    **options: Unpack[BuildKeywords],
) -> Build:
    """Exports a checkpoint to ONNX, verifies it, builds its engines and its Triton repository.

        build = iblip.build("Salesforce/instructblip-flan-t5-xl", precision="fp16")

    The directory is written beside its destination and moved into place whole: a build that fails
    changes nothing. Where the same build is in place already, it is returned as it is.

    Args:
        model: a directory in Hugging Face form, a model of the hub (`ORG/NAME`), or `lavis:NAME`
            or `minigpt4:NAME` with `parts`. A `Path` is always a directory. `None` is the model
            that the first of `adapters` was trained on.
        precision: `fp32`, `fp16`, `bf16`, `int8`, `int4`, `fp8`, `lavis`, or a word for each
            component, such as `vision_encoder=fp16,language_model=int4`.
        output: the build directory; `None` is `build/<checkpoint>-<precision>`.
        engine: what runs vision encoder and Q-Former: `auto`, `onnxruntime`, `onnxruntime-cuda`,
            `onnxruntime-tensorrt`, `onnxruntime-tensorrt-rtx`, `tensorrt` or `tensorrt-rtx`.
        llm_engine: what runs the language model: `onnxruntime`, `onnxruntime-cuda`,
            `openvino` or `vllm`.
        revision: branch, tag or commit of a model of the hub.
        parts: files and directories of an original's checkpoint, by name; `iblip models` says
            which.
        adapters: LoRA adapters that peft saved, which are merged into the model in this order: each
            a directory, or `ORG/NAME` or `ORG/NAME@REVISION` of the hub.
        lora_alpha: of LoRA inside of an original's file, which does not say it; or of each
            component, by name (`qformer`, `language_model`).
        image_size: height and width of images, in pixels; `None` is the checkpoint's own.
        verify: whether to compare graphs and answers with transformers before the build is put in
            place.
        examples: directory with `examples.jsonl` to compare answers on; `None` is the checkpoint's
            own.
        limit: compare answers on only so many examples.
        force: build again even where nothing has changed.
        progress: `True` shows a bar on stderr, `None` nothing; a function is called with each
            `Step`.
        options: see `BuildKeywords`.

    Raises:
        OptionError: an option is unknown, or does not fit the others or this machine.
        CheckpointError: the checkpoint is missing, truncated or not supported.
        ExportError, EngineError: a graph or an engine cannot be made.
        VerificationError: numbers or answers leave their limits; nothing is replaced.
        BuildDirectoryError: the destination cannot be written, or holds something else.
        IblipError: a library that exporting needs is not installed.
    """
    for name in options.keys() - BuildKeywords.__annotations__.keys():
        hint = did_you_mean(name, BuildKeywords.__annotations__)
        raise OptionError(f"build has no option {name!r}.{hint}")
    shown = progress_from(progress)
    with messages_in_keywords(), installed("iblip.build"), quiet():
        from iblip.export.checkpoint.source import adapters_from_words
        from iblip.export.opening import source_of_adapters
        from iblip.serving.builder.build import build as make

        names = adapters_from_words([adapters] if isinstance(adapters, str) else adapters)
        if model is None:
            if not names:
                raise OptionError("build was given no model; expected one, or adapters of one")
            base = source_of_adapters(names, shown)
            model, revision = base.model, revision or base.revision
        asked = _options(
            {
                **options,
                "model": model_from(model),
                "revision": revision,
                "parts": parts or {},
                "adapters": names,
                "lora_alpha": _alphas(lora_alpha),
                "image_size": image_size,
                "output": output,
                "precision": precision,
                "engine": engine,
                "llm_engine": llm_engine,
                "examples": examples,
                "limit": limit,
                "force": force,
            },
            verify=verify,
        )
        return Build(make(asked, shown))


def _alphas(alpha: Mapping[str, float] | float | None) -> dict[str, float]:
    """`lora_alpha` of `build` as `ModelSource` has it."""
    if alpha is None:
        return {}
    return dict(alpha) if isinstance(alpha, Mapping) else {"": alpha}


def model_from(model: PathLike) -> PathLike:
    """A model as a caller gives it: text is a name or a path, of which `~` is the user's home.

    Raises:
        OptionError: it is neither.
    """
    path = path_from(model, "model")
    return model if isinstance(model, str) and not model.startswith("~") else path


RENAMED: Mapping[str, str] = {
    "engine_cache": "engines",
    "trace_cache": "traces",
    "builder_flags": "flags",
}
"""Keywords of `build` that have another name in their topic."""

LISTS = frozenset({"targets", "flags", "profiles"})
"""Options that are several words, which their topics hold as a tuple."""


def _options(given: Mapping[str, Any], *, verify: bool) -> BuildOptions:
    """The keywords of `build` as options by topic.

    Raises:
        OptionError: a value is out of range.
    """
    from iblip.engines.memory import bytes_from_text
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.export.checkpoint.source import ModelSource
    from iblip.export.quantisation.options import QuantisationOptions
    from iblip.serving.builder import options

    topics: dict[str, type[Any]] = {
        "source": ModelSource,
        "quantisation": QuantisationOptions,
        "engines": options.EngineOptions,
        "vllm": options.VllmOptions,
        "plans": PlanOptions,
        "sizes": options.SizeOptions,
        "limits": options.LimitOptions,
        "caches": options.CacheOptions,
        "verification": options.VerificationOptions,
    }
    values = {RENAMED.get(name, name): value for name, value in given.items()}
    for name in LISTS & values.keys():
        values[name] = (values[name],) if isinstance(values[name], str) else tuple(values[name])
    if isinstance(values.get("gpu_memory"), str):
        values["gpu_memory"] = bytes_from_text(values["gpu_memory"], "gpu_memory")
    made: dict[str, Any] = {}
    for topic, kind in topics.items():
        names = kind.__dataclass_fields__.keys() & values.keys()
        made[topic] = kind(**{name: values.pop(name) for name in names})
    if not verify:
        made["verification"] = None
    return options.BuildOptions(**made, **values)


FLAGS: Mapping[str, str] = {
    "part": "parts",
    "adapter": "adapters",
    "builder-flag": "builder_flags",
    "target": "targets",
    "profile": "profiles",
    "stage": "stages",
    "no-verify": "verify=False",
    "html": "the page",
}
"""Flags of the command line that have another name in Python."""


_FLAG = re.compile(r"`[^`]*`|--([a-z][a-z0-9-]*)( (?=[A-Z]{2}))?")
"""A flag, with the space before its value's name; a command line in backticks stays as it is."""


@contextmanager
def messages_in_keywords() -> Iterator[None]:
    """Has errors of the block name keywords in the place of the command line's flags."""
    try:
        yield
    except IblipError as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (_FLAG.sub(_keyword, error.args[0]),)
        raise


def _keyword(match: re.Match[str]) -> str:
    flag: str | None = match[1]
    if flag is None:
        return match[0]
    return FLAGS.get(flag, flag.replace("-", "_")) + ("=" if match[2] else "")
