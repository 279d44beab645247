"""What `iblip build` is asked for: frozen values by topic, which refuse what no build can have.

What a build then is, `serving.builder.settled` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from iblip.engines.language_model.vllm.settings import VllmSettings
from iblip.engines.tensorrt.options import PlanOptions
from iblip.export.artifact.manifest import QUEUE, SLOTS, ServingLimits
from iblip.export.checkpoint.demo import demo_checkpoint
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import OptionError
from iblip.export.precision import PrecisionPolicy
from iblip.export.precision_words import spelt_here
from iblip.export.quantisation.options import QuantisationOptions, quantisations
from iblip.export.system.cache_directory import cache_directory, default_directory
from iblip.export.system.paths import settle_paths

LLM_ENGINES: Mapping[str, int] = {
    "onnxruntime": SLOTS,
    "onnxruntime-cuda": SLOTS,
    "openvino": SLOTS,
    "vllm": 64,
}
"""What can run the language model, and the slots it has unless the caller says otherwise: vLLM
shares one cache out among its sequences as they grow, and does not run T5. ONNX Runtime takes the
GPU where it runs the components there (`engines.selection.language_model_kind`)."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What is to run the components.

    Attributes:
        engine: `auto` or a key of `engines.kinds.KINDS`: of vision encoder and Q-Former.
        llm_engine: one of `LLM_ENGINES`: of the language model.
        triton_backend: one of `serving.repository.native.CHOICES`: what of Triton carries vision
            encoder and Q-Former.
        gpu_memory: bytes of the GPU that all of them share; `None` is that of this machine's GPU,
            if it has one.

    Raises:
        OptionError: an engine that no language model runs on, or a GPU without memory.
    """

    engine: str = "auto"
    llm_engine: str = "onnxruntime"
    triton_backend: str = "auto"
    gpu_memory: int | None = None

    def __post_init__(self) -> None:
        if self.llm_engine not in LLM_ENGINES:
            known = ", ".join(LLM_ENGINES)
            raise OptionError(f"--llm-engine is {self.llm_engine!r}; expected one of {known}")
        _check_counts(self, "gpu_memory")


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """How vLLM is to run the language model: `VllmSettings`, where `None` is the default there.

    Raises:
        OptionError: a value that `VllmSettings` refuses.
    """

    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    executor: str | None = None
    gpu_memory_utilization: float | None = None

    def __post_init__(self) -> None:
        self.settings()

    def given(self) -> dict[str, Any]:
        """What the caller said, by name."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def settings(self) -> VllmSettings:
        """The same, with vLLM's defaults."""
        return VllmSettings(**self.given())


@dataclass(frozen=True, kw_only=True)
class SizeOptions:
    """The sizes that engines are made for.

    Attributes:
        max_batch: the largest batch that vision encoder and Q-Former take, in images; `None` is
            `export.artifact.manifest.BATCH`. It is raised to the most images of a request.
        max_instruction: the longest instruction that a TensorRT Q-Former takes, in tokens; `None`
            is `serving.builder.sizes.INSTRUCTION`, and never more than the model's own.
        opt_batch, opt_instruction: the sizes that profiles are tuned for; `None` is a quarter of
            the largest.
        profiles: each as `profile_sizes.profile_from_word` reads it; none is one of all
            sizes.

    Raises:
        OptionError: a size below 1.
    """

    max_batch: int | None = None
    max_instruction: int | None = None
    opt_batch: int | None = None
    opt_instruction: int | None = None
    profiles: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_counts(self, "max_batch", "max_instruction", "opt_batch", "opt_instruction")


@dataclass(frozen=True, kw_only=True)
class LimitOptions:
    """What the server is to take on.

    Attributes:
        slots: sequences that the language model runs at once; `None` is what `LLM_ENGINES` says,
            or on a GPU as many of them as fit.
        max_length: positions of each, visual prompt, prompt and answer; `None` is the model's own,
            or on a GPU as many of them as fit (`engines.memory.choose_limits`).
        queue: requests that may wait for slots.
        max_images: most images of a request; `None` is `IMAGES`, or what fits into `max_length`,
            where the family takes several, and else 1.
        max_prompt_bytes: most bytes of a prompt, in UTF-8.
        max_option_bytes: most bytes of a request's parameters, as JSON.
        max_logprobs: most log-probabilities in the answers to a request.
        prefix_cache: whether a prompt reuses keys and values of a prefix that was read before.

    Raises:
        OptionError: a limit below 1.
    """

    slots: int | None = None
    max_length: int | None = None
    queue: int = QUEUE
    max_images: int | None = None
    max_prompt_bytes: int = ServingLimits.max_prompt_bytes
    max_option_bytes: int = ServingLimits.max_option_bytes
    max_logprobs: int = ServingLimits.max_logprobs
    prefix_cache: bool = ServingLimits.prefix_cache

    def __post_init__(self) -> None:
        _check_counts(self, *(one.name for one in fields(self) if one.name != "prefix_cache"))


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Directories that builds share; `None` takes nothing from there and keeps nothing.

    Attributes:
        engines: of plans.
        traces: of traced graphs.
    """

    engines: Path | None = field(default_factory=default_directory)
    traces: Path | None = field(default_factory=partial(cache_directory, "traces"))

    def __post_init__(self) -> None:
        settle_paths(self, "engines", "traces")


@dataclass(frozen=True, kw_only=True)
class VerificationOptions:
    """What a build is compared with transformers on.

    Attributes:
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: only so many examples; `None` is all.

    Raises:
        OptionError: a limit below 1.
    """

    examples: Path | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        settle_paths(self, "examples")
        _check_counts(self, "limit")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, from what, where to.

    Attributes:
        source: where the checkpoint comes from.
        output: the build directory; `None` is `build/<checkpoint>-<precision>`, with `-vllm`
            behind it where that runs the language model, and `-<size>px` where images have
            another size than the checkpoint's.
        precision: one word or a policy, as `PrecisionPolicy.parse` reads it.
        quantisation: how weights and activations of 4 and 8 bits are made.
        engines: what runs the components.
        vllm: how vLLM runs the language model, where it does.
        plans: how TensorRT's plans are built.
        sizes: what engines are made for.
        limits: what the server takes on.
        caches: what builds share.
        verification: what the build is compared on before it is put in place; `None` skips it.
        force: build even where the same build is in place.

    Raises:
        OptionError: a value that no build can have.
    """

    source: ModelSource = field(default_factory=lambda: ModelSource(model=str(demo_checkpoint())))
    output: Path | None = None
    precision: str = "fp32"
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    engines: EngineOptions = field(default_factory=EngineOptions)
    vllm: VllmOptions = field(default_factory=VllmOptions)
    plans: PlanOptions = field(default_factory=PlanOptions)
    sizes: SizeOptions = field(default_factory=SizeOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    caches: CacheOptions = field(default_factory=CacheOptions)
    verification: VerificationOptions | None = field(default_factory=VerificationOptions)
    force: bool = False

    def __post_init__(self) -> None:
        settle_paths(self, "output")
        quantisations(self.policy, self.quantisation)
        if self.engines.llm_engine != "vllm" and (given := self.vllm.given()):
            option = next(iter(given)).replace("_", "-")
            raise OptionError(f"--{option} is vLLM's. Add --llm-engine vllm, or leave it out.")

    @property
    def policy(self) -> PrecisionPolicy:
        """`precision` as it was asked for, before the language model is known."""
        return PrecisionPolicy.parse(spelt_here(self.precision))

    @property
    def destination(self) -> Path:
        """Where the build goes: `output`, or a directory that is called after what was asked."""
        word = spelt_here(self.precision).replace("=", "-").replace(",", "_")
        engine = "-vllm" if self.engines.llm_engine == "vllm" else ""
        size = f"-{self.source.image_size}px" if self.source.image_size else ""
        return self.output or Path("build") / f"{self.source.name}-{word}{engine}{size}"


MOST = 2**31 - 1
"""Largest count: Triton's configuration has 32 bits for a batch."""


def _check_counts(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        if value < 1:
            raise OptionError(f"--{name.replace('_', '-')} is {value}; expected 1 or more")
        if value > MOST and name != "gpu_memory":  # which has bytes
            raise OptionError(f"--{name.replace('_', '-')} is {value}; expected at most {MOST}")
