"""What `export build` is asked for: one frozen value, which refuses what no build can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from iblip.export.artifact.manifest import BATCH, QUEUE, SLOTS
from iblip.export.checkpoint.checkpoint import DEMO
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import OptionError
from iblip.export.precision import parse_precision
from iblip.export.quantisation.options import Quantisation, QuantisationOptions, quantisations
from iblip.export.system.cache_directory import cache_directory, default_directory

if TYPE_CHECKING:
    from iblip.engines.language_model.vllm.settings import VllmSettings
    from iblip.engines.tensorrt.options import PlanOptions

LLM_ENGINES: Mapping[str, int] = {"onnxruntime": SLOTS, "onnxruntime-cuda": SLOTS, "vllm": 64}
"""What can run the language model, and the slots it has unless the caller says otherwise: vLLM
shares one cache out among its sequences as they grow. T5 runs on ONNX Runtime alone, which takes
the GPU where it runs the components there (`engines.selection.language_model_kind`)."""

COUNTS = (
    "max_batch",
    "max_instruction",
    "usual_batch",
    "usual_instruction",
    "slots",
    "max_length",
    "queue",
    "max_images",
    "limit",
)
"""Options of a build that are 1 or more."""

VLLM_OPTIONS = ("tensor_parallel", "pipeline_parallel", "executor", "gpu_memory_utilization")
"""Options of a build that are vLLM's; each is one of `VllmSettings`."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What to build, from what, where to.

    Attributes:
        model: where the checkpoint comes from; a path or a name alone is that of `ModelSource`.
        output: the build directory; `None` is `build/<checkpoint>-<precision>`, with `-vllm`
            behind it where that runs the language model, and `-<size>px` where pictures have
            another size than the checkpoint's.
        precision: one word or a policy, as `export.precision.parse_precision` reads it.
        quantisation: how int8 and int4 weights are made.
        engine: `auto` or a key of `engines.kinds.KINDS`: of vision encoder and Q-Former.
        llm_engine: one of `LLM_ENGINES`: of the language model.
        triton_backend: one of `serving.repository.native.CHOICES`: what of Triton carries vision
            encoder and Q-Former.
        tensor_parallel, pipeline_parallel, executor, gpu_memory_utilization: as in
            `engines.language_model.vllm.settings.VllmSettings`, for vLLM alone; `None` is the
            default there.
        targets: GPU architectures (`sm89`) for TensorRT; empty is this machine's.
        engine_cache: directory of plans that builds share; `None` takes and keeps none.
        trace_cache: directory of traced graphs that builds share; `None` traces all.
        builder_flags: keys of `engines.tensorrt.options.FLAGS`, for plans.
        workspace: most GPU memory of one layer, in MiB, for plans; `None` is the library's limit.
        max_batch: the largest batch that vision encoder and Q-Former take, in images; raised to
            the most that a request may have.
        max_instruction: the longest instruction that a TensorRT Q-Former takes, in tokens; `None`
            is `serving.builder.sizes.INSTRUCTION`, and never more than the model's own.
        usual_batch, usual_instruction: the sizes that profiles are tuned for; `None` is a quarter
            of the largest.
        profiles: each as `engines.tensorrt.profile_sizes.profile_from_word` reads it; empty is one
            of all sizes.
        slots: sequences that the language model runs at once; `None` is what `LLM_ENGINES` says.
        max_length: positions of each, visual prompt, prompt and answer; `None` is the model's own.
        queue: requests that may wait for slots.
        max_images: most images of a request; `None` is `IMAGES`, or what fits into `max_length`,
            where the family takes several, and else 1.
        verify: compare with transformers before the build is put in place.
        examples: directory with `examples.jsonl`; `None` is the checkpoint's own `examples`.
        limit: compare only so many examples; `None` compares all.
        force: build even where the same build is in place.

    Raises:
        OptionError: a value that no build can have.
    """

    model: ModelSource | Path | str = DEMO
    output: Path | None = None
    precision: str = "fp32"
    quantisation: QuantisationOptions = field(default_factory=QuantisationOptions)
    engine: str = "auto"
    llm_engine: str = "onnxruntime"
    triton_backend: str = "auto"
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    executor: str | None = None
    gpu_memory_utilization: float | None = None
    targets: tuple[str, ...] = ()
    engine_cache: Path | None = field(default_factory=default_directory)
    trace_cache: Path | None = field(default_factory=partial(cache_directory, "traces"))
    builder_flags: tuple[str, ...] = ()
    workspace: int | None = None
    max_batch: int = BATCH
    max_instruction: int | None = None
    usual_batch: int | None = None
    usual_instruction: int | None = None
    profiles: tuple[str, ...] = ()
    slots: int | None = None
    max_length: int | None = None
    queue: int = QUEUE
    max_images: int | None = None
    verify: bool = True
    examples: Path | None = None
    limit: int | None = None
    force: bool = False
    source: ModelSource = field(init=False)
    components: Mapping[str, str] = field(init=False)
    quantisations: Mapping[str, Quantisation] = field(init=False)
    vllm: VllmSettings | None = field(init=False)
    plans: PlanOptions = field(init=False)

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} is {value}; wanted 1 or more")
        given = self.model
        source = given if isinstance(given, ModelSource) else ModelSource(model=str(given))
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "components", parse_precision(self.precision))
        made = quantisations(self.components, self.quantisation)
        object.__setattr__(self, "quantisations", made)
        object.__setattr__(self, "vllm", self._vllm())
        object.__setattr__(self, "plans", self._plans())

    def _vllm(self) -> VllmSettings | None:
        given = {n: getattr(self, n) for n in VLLM_OPTIONS if getattr(self, n) is not None}
        if self.llm_engine not in LLM_ENGINES:
            known = ", ".join(LLM_ENGINES)
            raise OptionError(f"--llm-engine is {self.llm_engine!r}; wanted one of {known}")
        if self.llm_engine == "vllm":
            from iblip.engines.language_model.vllm.settings import VllmSettings

            return VllmSettings(**given)
        if given:
            option = next(iter(given)).replace("_", "-")
            raise OptionError(f"--{option} is vLLM's. Add --llm-engine vllm, or leave it out.")
        return None

    def _plans(self) -> PlanOptions:
        from iblip.engines.tensorrt.options import PlanOptions

        return PlanOptions(targets=self.targets, flags=self.builder_flags, workspace=self.workspace)

    @property
    def destination(self) -> Path:
        """Where the build goes, `output` or what stands for it."""
        word = self.precision.replace("=", "-").replace(",", "_")
        engine = "-vllm" if self.llm_engine == "vllm" else ""
        size = f"-{self.source.image_size}px" if self.source.image_size else ""
        return self.output or Path("build") / f"{self.source.name}-{word}{engine}{size}"
