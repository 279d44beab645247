"""The sizes that a build's engines are made for, from its options.

An engine that reads graphs as they are takes any size. One that plans are built for, by us or by
ONNX Runtime's TensorRT providers when they start, takes what its profiles hold; and that is what is
served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from iblip.engines.kinds import KINDS
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import OptionError

if TYPE_CHECKING:
    from iblip.engines.tensorrt.libraries import Library
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions
    from iblip.serving.builder.options import BuildOptions

INSTRUCTION = 128
"""Longest instruction of a Q-Former that has profiles, in tokens, unless the build says more."""

PLANNED = tuple(kind for kind, row in KINDS.items() if row.plans)
"""Kinds of engine whose plans we build."""

PROFILED = (*PLANNED, "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")
"""Kinds of engine that are made for the sizes of their profiles."""

OWNERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "builder_flags": (PLANNED, "builds no plans"),
    "workspace": (PLANNED, "builds no plans"),
    "profiles": (PROFILED, "takes any size"),
    "usual_batch": (PROFILED, "takes any size"),
    "usual_instruction": (PROFILED, "takes any size"),
    "max_instruction": (PROFILED, "takes instructions of any length that the model does"),
}
"""Options of a build that only some kinds of engine have; and what the others do."""

FLAGS: Mapping[str, str] = {"builder_flags": "--builder-flag", "profiles": "--profile"}
"""Flags that are not called as their options are: one is given at a time."""


def check_owners(options: BuildOptions, kind: str) -> None:
    """Refuses an option that says nothing to this kind of engine.

    Raises:
        OptionError: naming the option, and the engines that have it.
    """
    for name, (kinds, otherwise) in OWNERS.items():
        if getattr(options, name) and kind not in kinds:
            flag = FLAGS.get(name, "--" + name.replace("_", "-"))
            raise OptionError(
                f"{flag} is for --engine {', '.join(kinds)}, and {kind} {otherwise}. Leave it out."
            )


def longest_instruction(options: BuildOptions, kind: str, checkpoint: Checkpoint) -> int | None:
    """Tokens of the longest instruction that the engine is made for; `None` where it has no limit
    of its own, or no instruction is read."""
    if kind not in PROFILED or checkpoint.projector != "instruction_qformer":
        return None
    own: int = checkpoint.config.qformer_config.max_position_embeddings
    return min(options.max_instruction or INSTRUCTION, own)


def sizes_from_options(options: BuildOptions) -> ProfileOptions:
    """What profiles are made of, from options whose limits are settled.

    Raises:
        OptionError: see `engines.tensorrt.profile_sizes.ProfileOptions`.
    """
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions, profile_from_word

    usual = {"batch": options.usual_batch, "instruction": options.usual_instruction}
    most = {"batch": options.max_batch, "instruction": options.max_instruction}
    return ProfileOptions(
        max=_given(most),
        opt=_given(usual),
        profiles=tuple(map(profile_from_word, options.profiles)),
    )


def sizes_of_build(
    manifest: Manifest,
    *,
    profiles: Sequence[str] = (),
    max_batch: int | None = None,
    max_instruction: int | None = None,
    usual_batch: int | None = None,
    usual_instruction: int | None = None,
) -> ProfileOptions:
    """What profiles of a build's graphs are made of: its own limits, unless the caller says others.

    Raises:
        OptionError: see `engines.tensorrt.profile_sizes.ProfileOptions`; or an instruction's
            length, and the model reads none.
    """
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions, profile_from_word

    own = manifest.max_instruction
    if max_instruction and max_instruction > own:
        raise OptionError(
            f"--max-instruction is {max_instruction}; this build takes instructions of {own} tokens"
        )
    longest = max_instruction or min(own, INSTRUCTION) or None
    most = {"batch": max_batch or manifest.limits.max_batch, "instruction": longest}
    return ProfileOptions(
        max=_given(most),
        opt=_given({"batch": usual_batch, "instruction": usual_instruction}),
        profiles=tuple(map(profile_from_word, profiles)),
    )


def plan_library(kind: str, targets: Sequence[str]) -> Library:
    """The library that builds plans of this kind for these targets.

    Raises:
        OptionError: an engine that has no plans or is not possible here, or a target that it has
            not.
        EngineError: its library is installed but does not load.
    """
    from iblip.engines.selection import choose_engine
    from iblip.engines.tensorrt.libraries import find_library

    if kind not in PLANNED and kind in KINDS:
        raise OptionError(f"--engine {kind} has no plans; wanted one of {', '.join(PLANNED)}")
    return find_library(choose_engine(kind, targets).kind)


def _given(sizes: Mapping[str, int | None]) -> dict[str, int]:
    return {axis: size for axis, size in sizes.items() if size is not None}
