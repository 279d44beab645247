"""Builds of the models that LAVIS names: found in a folder, or built there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iblip.building import Build, build
from iblip.engines.kinds import runs_on_gpu
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import BuildDirectoryError, OptionError
from iblip.export.messages import did_you_mean
from iblip.export.models.model import Model
from iblip.export.models.table import MODELS
from iblip.export.system.paths import PathLike
from iblip.progress import ProgressOption


def model_of_lavis(name: str, model_type: str) -> Model:
    """The released model that LAVIS calls so.

    Raises:
        OptionError: there is none; the message lists the names.
    """
    known = {model.lavis: model for model in MODELS.values() if model.lavis}
    wanted = f"{name}/{model_type}"
    if wanted not in known:
        hint = did_you_mean(wanted, known).replace("/", " ")
        names = "\n  ".join(one.replace("/", " ") for one in known)
        raise OptionError(
            f"LAVIS has no model {name!r} of model_type {model_type!r} that is known here.{hint} "
            f"Known are\n  {names}"
        )
    return known[wanted]


def needs_gpu(build: Build) -> bool:
    """Whether an engine of the build runs on a GPU."""
    return any(runs_on_gpu(kind) for kind in build.engines.values())


def find_build(model: Model, folder: Path, *, precision: str | None, on_gpu: bool) -> Build | None:
    """The latest build of a model in a folder; `None` if there is none.

    Args:
        model: as released, whether it was built from LAVIS's files or from the hub's.
        folder: holds build directories; need not exist.
        precision: as it was built with; `None` takes any.
        on_gpu: whether builds for a GPU fit, which then go before those for the CPU.
    """
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    builds = [build for path in paths if (build := _opened(path)) and _is_of(build, model)]
    fitting = [
        build
        for build in builds
        if _has_precision(build, precision) and (on_gpu or not needs_gpu(build))
    ]
    return max(fitting, key=lambda one: (needs_gpu(one), one.created), default=None)


def _opened(path: Path) -> Build | None:
    try:
        return Build(path)
    except BuildDirectoryError:
        return None


def _is_of(build: Build, model: Model) -> bool:
    names = {model.name, _name(model)}
    return build.name in names or build.manifest.source.get("model") in {model.hub, model.original}


def _name(model: Model) -> str:
    """What a build from LAVIS's files is called."""
    return str(model.lavis).replace("/", "-")


def _has_precision(build: Build, word: str | None) -> bool:
    if word is None:
        return True
    from iblip.serving.builder.options import BuildOptions

    asked = BuildOptions(source=ModelSource(model="."), precision=word)
    architecture = build.manifest.language_model.architecture
    policy = asked.policy.resolve(architecture)
    return build.precision in (policy.to_json(), policy.in_halves(architecture).to_json())


def build_model(
    model: Model,
    folder: Path,
    *,
    parts: Mapping[str, PathLike] | None,
    checkpoint: PathLike | None,
    precision: str,
    verify: bool,
    progress: ProgressOption,
) -> Build:
    """Builds a model in a folder.

    Args:
        model: as released.
        folder: of the new build directory.
        parts: LAVIS's files by name; or else
        checkpoint: a directory in Hugging Face form, or a model of the hub.
        precision, verify, progress: see `iblip.build`.

    Raises:
        OptionError: both sources are given.
        BuildDirectoryError: none is.
        IblipError: as `iblip.build`.
    """
    if parts and checkpoint is not None:
        raise OptionError("parts and checkpoint are given; expected one of them")
    if not parts and checkpoint is None:
        hub = f'checkpoint="{model.hub}", which is downloaded, or ' if model.hub else ""
        raise BuildDirectoryError(
            f"{folder.absolute()} has no build of {model.lavis} that fits. To make one, give "
            f"{hub}parts= with LAVIS's own files ({', '.join(model.files)}). If there is one "
            "elsewhere, give build=, or url= of its server."
        )
    return build(
        model.original if checkpoint is None else checkpoint,
        parts=parts,
        precision=precision,
        output=folder / f"{_name(model)}-{precision}",
        verify=verify,
        progress=progress,
    )
