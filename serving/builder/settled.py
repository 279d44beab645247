"""What a build is, once all that it was asked for is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from iblip.engines.memory import MemoryPlan
from iblip.export.artifact.manifest import ServingLimits
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.checkpoint.source import ModelSource
from iblip.export.precision import PrecisionPolicy
from iblip.export.quantisation.options import Quantisation

if TYPE_CHECKING:
    from iblip.engines.language_model.vllm.settings import VllmSettings
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions
    from iblip.serving.builder.options import CacheOptions, VerificationOptions


@dataclass(frozen=True, kw_only=True)
class SettledBuild:
    """A build that can be made here: its values are definite, and fit one another.

    `serving.builder.settling.settle` makes it from `BuildOptions`, and nothing else does.

    Attributes:
        destination: the build directory, an absolute path.
        source: what opens the same checkpoint again, from any directory.
        checkpoint: opened; none of its weights is read.
        policy: the precision of each component, the language model's own in the place of `lavis`.
        quantisations: by component, of those that have one.
        engines: component to the kind of its engine: a key of `engines.kinds.KINDS`, or `vllm`
            for the language model.
        backend: what of Triton carries vision encoder and Q-Former: `PYTHON` or `NATIVE` of
            `serving.repository.native`.
        vllm: how vLLM runs the language model; `None` where it does not.
        plans: how TensorRT's plans are built.
        sizes: what engines with profiles are made for.
        limits: what the server takes on.
        memory: what it takes of a GPU; `None` where nothing runs on one.
        caches: what builds share.
        verification: what is compared with transformers; `None` skips it.
    """

    destination: Path
    source: ModelSource
    checkpoint: Checkpoint
    policy: PrecisionPolicy
    quantisations: Mapping[str, Quantisation]
    engines: Mapping[str, str]
    backend: str
    vllm: VllmSettings | None
    plans: PlanOptions
    sizes: ProfileOptions
    limits: ServingLimits
    memory: MemoryPlan | None
    caches: CacheOptions
    verification: VerificationOptions | None

    @property
    def engine(self) -> str:
        """The kind of engine of vision encoder and Q-Former."""
        return self.engines["vision_encoder"]
