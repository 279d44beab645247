"""The sizes that a build's engines are made for.

An engine that reads graphs as they are takes any size. One that plans are built for, by us or by
ONNX Runtime's TensorRT providers when they start, takes what its profiles hold; and that is what is
served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iblip.engines.kinds import KINDS
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.checkpoint import Checkpoint
from iblip.export.errors import OptionError

if TYPE_CHECKING:
    from iblip.engines.tensorrt.libraries import Library
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions
    from iblip.serving.builder.options import BuildOptions, SizeOptions

INSTRUCTION = 128
"""Longest instruction of a Q-Former that has profiles, in tokens, unless the build says more."""

PLANNED = tuple(kind for kind, row in KINDS.items() if row.plans)
"""Kinds of engine whose plans we build."""

PROFILED = (*PLANNED, "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx")
"""Kinds of engine that are made for the sizes of their profiles."""


def check_owners(options: BuildOptions, kind: str) -> None:
    """Refuses an option that says nothing to this kind of engine.

    Raises:
        OptionError: naming the option, and the engines that have it.
    """
    plans, sizes = options.plans, options.sizes
    for flag, given, kinds, otherwise in (
        ("--builder-flag", plans.flags, PLANNED, "builds no plans"),
        ("--workspace", plans.workspace, PLANNED, "builds no plans"),
        ("--profile", sizes.profiles, PROFILED, "takes any size"),
        ("--opt-batch", sizes.opt_batch, PROFILED, "takes any size"),
        ("--opt-instruction", sizes.opt_instruction, PROFILED, "takes any size"),
        (
            "--max-instruction",
            sizes.max_instruction,
            PROFILED,
            "takes instructions of any length that the model does",
        ),
    ):
        if given and kind not in kinds:
            raise OptionError(
                f"{flag} is for --engine {', '.join(kinds)}, and {kind} {otherwise}. Leave it out."
            )


def longest_instruction(asked: int | None, kind: str, checkpoint: Checkpoint) -> int | None:
    """Tokens of the longest instruction that an engine is made for.

    Args:
        asked: `--max-instruction`; `None` is `INSTRUCTION`.
        kind: of the engine.
        checkpoint: whose Q-Former it runs.

    Returns:
        `None` where the engine has no limit of its own, or no instruction is read.
    """
    if kind not in PROFILED or checkpoint.projector != "instruction_qformer":
        return None
    own: int = checkpoint.config.qformer_config.max_position_embeddings
    return min(asked or INSTRUCTION, own)


def profile_options(
    sizes: SizeOptions, max_batch: int, max_instruction: int | None
) -> ProfileOptions:
    """What profiles are made of.

    Args:
        sizes: the sizes to tune for, and the profiles; its largest sizes are passed over.
        max_batch: the largest batch that is served, in images.
        max_instruction: the longest instruction that is served, in tokens; `None` where there is no
            such limit.

    Raises:
        OptionError: see `engines.tensorrt.profile_sizes.ProfileOptions`.
    """
    from iblip.engines.tensorrt.profile_sizes import ProfileOptions, profile_from_word

    return ProfileOptions(
        max=_without_unknown(batch=max_batch, instruction=max_instruction),
        opt=_without_unknown(batch=sizes.opt_batch, instruction=sizes.opt_instruction),
        profiles=tuple(map(profile_from_word, sizes.profiles)),
    )


def profile_options_of_build(manifest: Manifest, sizes: SizeOptions) -> ProfileOptions:
    """What profiles of a build's graphs are made of: its own limits, unless the caller says others.

    Raises:
        OptionError: see `engines.tensorrt.profile_sizes.ProfileOptions`; or an instruction's
            length, and the model reads none.
    """
    own, asked = manifest.max_instruction, sizes.max_instruction
    if asked and asked > own:
        raise OptionError(
            f"--max-instruction is {asked}; this build takes instructions of {own} tokens"
        )
    longest = asked or min(own, INSTRUCTION) or None
    return profile_options(sizes, sizes.max_batch or manifest.limits.max_batch, longest)


def find_plan_library(kind: str, targets: Sequence[str]) -> Library:
    """The library that builds plans of this kind for these targets.

    Raises:
        OptionError: an engine that has no plans or is not possible here, or a target that it has
            not.
        EngineError: its library is installed but does not load.
    """
    from iblip.engines.selection import choose_engine
    from iblip.engines.tensorrt.libraries import find_library

    if kind not in PLANNED and kind in KINDS:
        raise OptionError(f"--engine {kind} has no plans; expected one of {', '.join(PLANNED)}")
    return find_library(choose_engine(kind, targets).kind)


def _without_unknown(**sizes: int | None) -> dict[str, int]:
    return {axis: size for axis, size in sizes.items() if size is not None}
