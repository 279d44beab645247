"""Rules about folders and files: names, versions, and what a version folder must hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from iblip.export.messages import did_you_mean
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import (
    FILES,
    LARGEST_VERSION,
    Model,
    Repository,
    is_version,
    parameters_of,
)
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.text_format import Entry
from iblip.serving.repository.model_config import PLATFORMS
from iblip.serving.repository.onnx_files import onnx_faults

ENVIRONMENT = "EXECUTION_ENV_PATH"
"""The parameter that names the environment of a Python model: an archive, or a folder."""

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
"""What the Python backend reads as the model's folder, at the start of that parameter."""


def _check_name_differs(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.name not in ("", model.name):
        yield Fault(
            f"the name is {model.config.name!r} in a folder called {model.name!r}",
            line=model.line("name"),
        )


def _check_max_batch_size_missing(model: Model, repository: Repository) -> Iterator[Fault]:
    if "max_batch_size" not in model.tree.fields:
        yield Fault("max_batch_size is not set", line=1)


def _check_max_batch_size_negative(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.max_batch_size < 0:
        size = model.config.max_batch_size
        yield Fault(f"max_batch_size is {size}; expected 0 or more", model.line("max_batch_size"))


def _check_version_missing(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.path.is_dir() and not model.versions:
        names = ", ".join(folder.name for folder in model.folders)
        others = f"; there is {names}" if names else ""
        yield Fault(f"there is no version folder such as 1{others}", path=model.path)


def _check_version_name(model: Model, repository: Repository) -> Iterator[Fault]:
    """Triton takes the number at the start of a name, and opens the folder with that number."""
    present = {int(version.name) for version in model.versions}
    for folder in model.folders:
        if is_version(folder.name) or folder.name[0] == "0":  # Triton skips the latter
            continue
        match = re.match(r"\s*[+-]?[0-9]+", folder.name, re.ASCII)
        number = int(match[0]) if match else None
        if number is not None and abs(number) > LARGEST_VERSION:
            yield Fault(f"the version {number} is larger than {LARGEST_VERSION}", path=folder)
        elif number is not None and number not in present:
            message = f"Triton takes {folder.name!r} for version {number}, and opens {number}"
            yield Fault(f"{message}, which does not exist", path=folder)


def _check_version_policy(model: Model, repository: Repository) -> Iterator[Fault]:
    present = {int(version.name) for version in model.versions}
    policy = model.config.version_policy
    kind = policy.WhichOneof("policy_choice")
    counts = {"latest": policy.latest.num_versions, "specific": len(policy.specific.versions)}
    if counts.get(kind) == 0:
        yield Fault(f"{kind} with no version", model.line("version_policy", kind))
    for number in policy.specific.versions:
        if present and number not in present:
            has = ", ".join(map(str, sorted(present)))
            line = model.line("version_policy", "specific", "versions")
            yield Fault(f"version {number} is requested; there is {has}", line)


def _check_platform_unknown(model: Model, repository: Repository) -> Iterator[Fault]:
    config = model.config
    if config.platform and not config.backend and config.platform not in PLATFORMS:
        hint = did_you_mean(config.platform, PLATFORMS) or f" Known: {', '.join(PLATFORMS)}"
        yield Fault(f"there is no platform {config.platform!r}.{hint}", model.line("platform"))


def _check_backend_missing(model: Model, repository: Repository) -> Iterator[Fault]:
    config = model.config
    if not config.platform and not config.backend and not model.ensemble:
        guess = f"Triton would guess {model.backend!r} from its file" if model.backend else ""
        yield Fault(f"neither backend nor platform is set. {guess}".strip(), line=1)


def _check_platform_and_backend(model: Model, repository: Repository) -> Iterator[Fault]:
    platform, backend = model.config.platform, model.config.backend
    if platform in PLATFORMS and backend and PLATFORMS[platform] not in (backend, "ensemble"):
        yield Fault(
            f"platform {platform!r} belongs to the backend {PLATFORMS[platform]!r}, but backend is "
            f"{backend!r}",
            model.line("backend"),
        )


def _check_model_file(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.backend != "python" and not model.ensemble:
        yield from _check_file(model)


def _check_python_model(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.backend == "python":
        yield from _check_file(model)


def _check_file(model: Model) -> Iterator[Fault]:
    name = model.config.default_model_filename or FILES.get(model.backend)
    for folder in model.versions if name else ():
        if not (folder / str(name)).exists():
            has = sorted(path.name for path in folder.iterdir())
            near = did_you_mean(str(name), has, cutoff=0.5)
            hint = near or f" There is {', '.join(has) or 'nothing'}"
            yield Fault(f"there is no {name}.{hint}", path=folder)


def _check_python_environment(model: Model, repository: Repository) -> Iterator[Fault]:
    """Paths outside the model's folder are the server's, and cannot be checked here."""
    value = parameters_of(model).get(ENVIRONMENT, "")
    path = model.path / value.removeprefix(MODEL_DIRECTORY).lstrip("/")
    inside = model.backend == "python" and value.startswith(MODEL_DIRECTORY)
    if inside and not path.exists():
        line = model.line("parameters", Entry(ENVIRONMENT))
        yield Fault(f"{ENVIRONMENT} is {value}, which does not exist", line)


def _links(model: Model) -> Iterator[Path]:
    if model.path.is_symlink():
        yield model.path
    for folder, folders, names in os.walk(model.path):
        yield from (
            path for name in (*folders, *names) if (path := Path(folder, name)).is_symlink()
        )


def _check_link_broken(model: Model, repository: Repository) -> Iterator[Fault]:
    for link in _links(model):
        if not link.exists():
            yield Fault(f"the link points to {link.readlink()}, which does not exist", path=link)


def _check_link_leaves(model: Model, repository: Repository) -> Iterator[Fault]:
    # The files of a build move with it, so their links may go anywhere inside the build.
    border = (repository.directory or repository.path).resolve()
    for link in _links(model):
        target = link.readlink()
        if link.exists() and (target.is_absolute() or not link.resolve().is_relative_to(border)):
            yield Fault(f"the link points to {target}, outside of {border.name}", path=link)


def _check_external_data(model: Model, repository: Repository) -> Iterator[Fault]:
    for path in _onnx_files(model):
        yield from (Fault(message, path=path) for message in onnx_faults(path))


def _onnx_files(model: Model) -> Iterator[Path]:
    """The ONNX file of each version, if ONNX Runtime runs the model."""
    if model.backend == "onnxruntime":
        name = model.config.default_model_filename or "model.onnx"
        yield from (path for folder in model.versions if (path := folder / name).is_file())


RULES = (
    Rule(
        id="name-differs",
        severity=Severity.ERROR,
        title="A model has the name of its folder.",
        why="The server skips a folder with another name.",
        mend="Rename the folder, or use its name in the config.",
        server=Verdict.REFUSES,
        check=_check_name_differs,
    ),
    Rule(
        id="max-batch-size-missing",
        severity=Severity.WARNING,
        title="`max_batch_size` is set, even if it is 0.",
        why="Left out, it means 0, and dims then include the batch axis; with auto-complete it can "
        "mean 4. A reader of the file cannot tell which.",
        mend="Write max_batch_size: 0, or the largest batch.",
        server=Verdict.ACCEPTS,
        check=_check_max_batch_size_missing,
    ),
    Rule(
        id="max-batch-size-negative",
        severity=Severity.ERROR,
        title="`max_batch_size` is 0 or more.",
        why="No batch has a negative size.",
        mend="Write max_batch_size: 0 if the model does not batch.",
        server=Verdict.REFUSES,
        check=_check_max_batch_size_negative,
    ),
    Rule(
        id="version-missing",
        severity=Severity.ERROR,
        title="A model has a version folder, even an ensemble.",
        why="The server loads versions, so a model without one is not loaded. An ensemble's is "
        "empty, and Git does not keep empty folders, so it is easily lost.",
        mend="Create a folder named 1 in the model's folder.",
        server=Verdict.REFUSES,
        check=_check_version_missing,
    ),
    Rule(
        id="version-name",
        severity=Severity.ERROR,
        title="The name of a version folder is its number and nothing else.",
        why="Triton takes `2.old` for version 2 and opens the folder 2: it does not load the "
        "model, or waits for it forever. A number beyond 64 bits crashes it.",
        mend="Rename the folder, or move it out of the model's folder.",
        server=Verdict.WAITS,
        check=_check_version_name,
        without_config=True,
    ),
    Rule(
        id="version-policy",
        severity=Severity.ERROR,
        title="A version policy requests versions that exist, and at least one.",
        why="The model is not loaded, or not in that version.",
        mend="Request versions that have a folder, or remove version_policy to serve the latest.",
        server=Verdict.REFUSES,
        check=_check_version_policy,
    ),
    Rule(
        id="platform-unknown",
        severity=Severity.ERROR,
        title="A platform is one of Triton's.",
        why="The model is not loaded.",
        mend="Spell it as Triton does, or name a backend instead.",
        server=Verdict.REFUSES,
        check=_check_platform_unknown,
    ),
    Rule(
        id="backend-missing",
        severity=Severity.WARNING,
        title="A config names what runs the model.",
        why="Otherwise the server guesses from file names, and another file changes the guess.",
        mend="Set backend, or platform for an ensemble or a TensorRT plan.",
        server=Verdict.ACCEPTS,
        check=_check_backend_missing,
    ),
    Rule(
        id="platform-and-backend",
        severity=Severity.ERROR,
        title="A platform belongs to the backend that is set beside it.",
        why="Triton 2.51 goes by the backend; later servers refuse the pair.",
        mend="Remove one of the two.",
        server=Verdict.ACCEPTS,
        check=_check_platform_and_backend,
    ),
    Rule(
        id="model-file",
        severity=Severity.ERROR,
        title="Every version has the file that its backend opens.",
        why="The model is not loaded.",
        mend="Put it there under that name, or set default_model_filename to its name.",
        server=Verdict.UNASKED,
        check=_check_model_file,
    ),
    Rule(
        id="python-model",
        severity=Severity.ERROR,
        title="Every version of a Python model has its `model.py`.",
        why="Triton only logs it, not as an error, and waits forever: it never becomes ready.",
        mend="Put it there under that name, or set default_model_filename to its name.",
        server=Verdict.WAITS,
        check=_check_python_model,
    ),
    Rule(
        id="python-environment",
        severity=Severity.ERROR,
        title="The environment of a Python model exists.",
        why="The model is not loaded.",
        mend="Put the archive or the folder there, or remove EXECUTION_ENV_PATH.",
        server=Verdict.REFUSES,
        check=_check_python_environment,
    ),
    Rule(
        id="link-broken",
        severity=Severity.ERROR,
        title="Links point to something that exists.",
        why="The file that the backend opens is missing. If the link itself stands for a model, or "
        "is in the same folder as models, the server reads none of them.",
        mend="Rebuild, put the file where the link points, or remove the link.",
        server=Verdict.UNASKED,
        check=_check_link_broken,
        without_config=True,
    ),
    Rule(
        id="link-leaves",
        severity=Severity.WARNING,
        title="Links stay inside the repository; in a build, inside the build.",
        why="Copied, moved or mounted elsewhere, as in a container, the repository is incomplete.",
        mend="Link inside it by a relative path, or put the file itself there.",
        server=Verdict.UNASKED,
        check=_check_link_leaves,
        without_config=True,
    ),
    Rule(
        id="external-data",
        severity=Severity.ERROR,
        title="An ONNX file is whole, and its weights are in its own folder or below.",
        why="ONNX Runtime refuses absolute paths, and weights outside of the ONNX file's folder "
        "once the links of both are resolved.",
        mend="Put or hard-link the weights beside the file, under the name that it refers to.",
        server=Verdict.UNASKED,
        check=_check_external_data,
    ),
)
