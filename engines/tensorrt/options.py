"""The options of a plan: targets, flags, workspace.

One table says what each flag is in the libraries, and why one of them does not have it. Importing
this module loads none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean

NO_LEAN_RUNTIME = (
    "its builder needs libnvinfer_lean, which TensorRT-RTX does not include: its engines are for "
    "the version that built them"
)
NO_LEVELS = (
    "it has no levels of compatibility: name every GPU family with --target (sm80,sm86,sm89)"
)
WITHOUT_GPU = "it compiles the weights separately from the engine, which needs a GPU"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One row of `FLAGS`.

    Attributes:
        member: its name in the library's enumeration.
        effect: its effect, for help and documentation.
        kind: the enumeration: `BuilderFlag`, of which any number may be set, or
            `HardwareCompatibilityLevel`, of which one is set.
        refused: kind of library to the reason why it does not have the flag.
        needs_gpu: kind of library to the reason why it has the flag only on a machine with a GPU.
    """

    member: str
    effect: str
    kind: str = "BuilderFlag"
    refused: Mapping[str, str] = field(default_factory=dict)
    needs_gpu: Mapping[str, str] = field(default_factory=dict)


FLAGS: Mapping[str, Flag] = {
    "version-compatible": Flag(
        member="VERSION_COMPATIBLE",
        effect="the plan also loads in later TensorRT of the same major version, and one of 10 in "
        "11; Triton is then started with --backend-config=tensorrt,version-compatible=true",
        refused={"tensorrt-rtx": NO_LEAN_RUNTIME},
    ),
    "hardware-compatible=ampere-plus": Flag(
        kind="HardwareCompatibilityLevel",
        member="AMPERE_PLUS",
        effect="the plan runs on any GPU from Ampere on, more slowly",
        refused={"tensorrt-rtx": NO_LEVELS},
    ),
    "hardware-compatible=same-compute-capability": Flag(
        kind="HardwareCompatibilityLevel",
        member="SAME_COMPUTE_CAPABILITY",
        effect="the plan runs on any GPU of the same compute capability",
        refused={"tensorrt-rtx": NO_LEVELS},
    ),
    "refit": Flag(
        member="REFIT",
        effect="weights can be exchanged in the plan",
        needs_gpu={"tensorrt-rtx": WITHOUT_GPU},
    ),
    "strip-plan": Flag(
        member="STRIP_PLAN",
        effect="the plan has no weights: they are added from the graph when it is loaded",
        needs_gpu={"tensorrt-rtx": WITHOUT_GPU},
    ),
    "weight-streaming": Flag(
        member="WEIGHT_STREAMING",
        effect="weights may stay in the host's memory and be streamed to the GPU",
    ),
    "tf32": Flag(
        member="TF32",
        effect="float32 MatMuls keep ten bits of their factors' mantissas, for the fast units of "
        "Ampere; without this flag, float32 is float32",
    ),
    "sparse-weights": Flag(
        member="SPARSE_WEIGHTS",
        effect="weights with two zeros in every four values use the GPU's sparse units",
    ),
    "strict-nans": Flag(member="STRICT_NANS", effect="keep NaN semantics exactly"),
}
"""The values of `--builder-flag`. A flag that is not in a library's enumeration is refused as well.

TensorRT sets TF32 by default, which would make float32 graphs less precise than what was verified.
So it is a flag here, and is cleared without it (decision 0015)."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How plans are built.

    Attributes:
        targets: GPU families to build for, such as `sm89`; empty is this machine's GPU.
        flags: keys of `FLAGS`, in any order; stored in the table's order.
        workspace: the most GPU memory, in MiB, that one layer may take besides its tensors; `None`
            is the library's own limit.

    Raises:
        OptionError: a flag is unknown, there are two levels of hardware compatibility, or the
            workspace is below 1 MiB.
    """

    targets: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    workspace: int | None = None

    def __post_init__(self) -> None:
        for word in self.flags:
            if word not in FLAGS:
                hint = did_you_mean(word, FLAGS)
                raise OptionError(
                    f"there is no --builder-flag {word}.{hint} Flags: {', '.join(FLAGS)}"
                )
        levels = [word for word in self.flags if FLAGS[word].kind != "BuilderFlag"]
        if len(set(levels)) > 1:
            raise OptionError(
                f"--builder-flag {' and '.join(levels)}: a plan can have only one of them"
            )
        if self.workspace is not None and self.workspace < 1:
            raise OptionError(f"--workspace is {self.workspace}; expected 1 MiB or more")
        targets = tuple(dict.fromkeys(target.lower() for target in self.targets))
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "flags", tuple(word for word in FLAGS if word in self.flags))

    def to_json(self) -> dict[str, Any]:
        """For `EngineRecord.details`: `targets`, `flags`, and `workspace` if it is set."""
        details: dict[str, Any] = {"targets": list(self.targets), "flags": list(self.flags)}
        return details if self.workspace is None else {**details, "workspace": self.workspace}
