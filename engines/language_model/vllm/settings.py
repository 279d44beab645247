"""How vLLM spreads a model over devices: decided by a build, and kept in its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from iblip.export.errors import OptionError

EXECUTORS: Mapping[str, str] = {
    "mp": "processes of one machine",
    "ray": "a Ray cluster, of one machine or several",
}
"""Executor to what it spreads vLLM's shares of a model over."""

UTILIZATION = 0.9
"""The share of a GPU's memory that vLLM takes where nothing says more."""

PRECISIONS = ("fp32", "fp16", "bf16")
"""Precision words whose dtype vLLM keeps weights in and computes in."""


@dataclass(frozen=True, kw_only=True)
class VllmSettings:
    """How vLLM runs a model.

    Attributes:
        tensor_parallel: devices that each layer is spread over.
        pipeline_parallel: groups of layers, each on devices of its own.
        executor: a key of `EXECUTORS`.
        gpu_memory_utilization: the share of a GPU's memory that vLLM may take; `None` is what the
            components beside it leave (`engines.memory`), or `UTILIZATION` where that is not known.

    Raises:
        OptionError: the message names the option of `iblip build`, its value and its range.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    executor: str = "mp"
    gpu_memory_utilization: float | None = None

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel"):
            if getattr(self, name) < 1:
                raise OptionError(f"{_flag(name)} is {getattr(self, name)}; expected 1 or more")
        if self.executor not in EXECUTORS:
            known = ", ".join(f"{name} ({what})" for name, what in EXECUTORS.items())
            raise OptionError(f"--executor is {self.executor!r}; expected one of {known}")
        share = self.gpu_memory_utilization
        if share is not None and not 0 < share <= 1:
            raise OptionError(f"--gpu-memory-utilization is {share}; expected above 0, at most 1")

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> Self:
        """From an engine's record in a manifest, which may hold more."""
        return cls(**{f.name: details[f.name] for f in fields(cls) if f.name in details})

    def to_details(self) -> dict[str, Any]:
        """JSON-ready; `from_details` reads it."""
        return asdict(self)

    def check_fit(self, *, heads: int, layers: int) -> None:
        """Refuses sizes that do not divide the model.

        Raises:
            OptionError: the message names the option and the sizes that do.
        """
        if heads % self.tensor_parallel:
            fitting = [str(size) for size in range(1, heads + 1) if heads % size == 0]
            raise OptionError(
                f"--tensor-parallel is {self.tensor_parallel}; this model's {heads} attention "
                f"heads can be spread over {', '.join(fitting)}"
            )
        if self.pipeline_parallel > layers:
            raise OptionError(
                f"--pipeline-parallel is {self.pipeline_parallel}; "
                f"this model has {layers} layers, and each group needs one"
            )

    def to_arguments(self) -> dict[str, Any]:
        """As arguments of vLLM's engine."""
        arguments: dict[str, Any] = {
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "gpu_memory_utilization": self.gpu_memory_utilization or UTILIZATION,
        }
        # One device needs no executor, and vLLM is quicker without.
        if self.executor != "mp" or self.tensor_parallel * self.pipeline_parallel > 1:
            arguments["distributed_executor_backend"] = self.executor
        return arguments


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
