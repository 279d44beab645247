"""Rules of folders and files: names, versions, what a version's folder must hold."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from iblip.export.messages import did_you_mean
from iblip.serving.lint.external_data import external_faults, onnx_files, onnx_installed
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

ENVIRONMENT = "EXECUTION_ENV_PATH"
"""The parameter that names the environment of a Python model: an archive, or a folder."""

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"
"""What the Python backend reads as the model's folder, at the head of that."""


def _name(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.name not in ("", model.name):
        yield Fault(
            f"the name is {model.config.name!r} in a folder called {model.name!r}",
            line=model.line("name"),
        )


def _max_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    if "max_batch_size" not in model.tree.fields:
        yield Fault("max_batch_size is not written", line=1)


def _negative_batch(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.config.max_batch_size < 0:
        size = model.config.max_batch_size
        yield Fault(f"max_batch_size is {size}; wanted 0 or more", model.line("max_batch_size"))


def _version(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.path.is_dir() and not model.versions:
        has = ", ".join(one.name for one in model.folders)
        also = f"; there is {has}" if has else ""
        yield Fault(f"there is no version folder such as 1{also}", path=model.path)


def _version_name(model: Model, repository: Repository) -> Iterator[Fault]:
    """Triton takes the number that a name begins with, and opens the folder of that number."""
    there = {int(one.name) for one in model.versions}
    for folder in model.folders:
        if is_version(folder.name) or folder.name[0] == "0":  # which Triton passes over
            continue
        begins = re.match(r"\s*[+-]?[0-9]+", folder.name, re.ASCII)
        number = int(begins[0]) if begins else None
        if number is not None and abs(number) > LARGEST_VERSION:
            yield Fault(f"the version {number} is larger than {LARGEST_VERSION}", path=folder)
        elif number is not None and number not in there:
            message = f"Triton takes {folder.name!r} for version {number}, and opens {number}"
            yield Fault(f"{message}, which is not there", path=folder)


def _policy(model: Model, repository: Repository) -> Iterator[Fault]:
    there = {int(one.name) for one in model.versions}
    policy = model.config.version_policy
    kind = policy.WhichOneof("policy_choice")
    wanted = {"latest": policy.latest.num_versions, "specific": len(policy.specific.versions)}
    if wanted.get(kind) == 0:
        yield Fault(f"{kind} of no version", model.line("version_policy", kind))
    for number in policy.specific.versions:
        if there and number not in there:
            has = ", ".join(map(str, sorted(there)))
            line = model.line("version_policy", "specific", "versions")
            yield Fault(f"version {number} is asked for; there is {has}", line)


def _platform(model: Model, repository: Repository) -> Iterator[Fault]:
    config = model.config
    if config.platform and not config.backend and config.platform not in PLATFORMS:
        hint = did_you_mean(config.platform, PLATFORMS) or f" Known: {', '.join(PLATFORMS)}"
        yield Fault(f"there is no platform {config.platform!r}.{hint}", model.line("platform"))


def _backend(model: Model, repository: Repository) -> Iterator[Fault]:
    config = model.config
    if not config.platform and not config.backend and not model.ensemble:
        told = f"Triton would take {model.backend!r}, by the file in it" if model.backend else ""
        yield Fault(f"neither backend nor platform is written. {told}".strip(), line=1)


def _pair(model: Model, repository: Repository) -> Iterator[Fault]:
    platform, backend = model.config.platform, model.config.backend
    if platform in PLATFORMS and backend and PLATFORMS[platform] not in (backend, "ensemble"):
        yield Fault(
            f"platform {platform!r} is of the backend {PLATFORMS[platform]!r}, and backend is "
            f"{backend!r}",
            model.line("backend"),
        )


def _file(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.backend != "python" and not model.ensemble:
        yield from _wanted_file(model)


def _python_file(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.backend == "python":
        yield from _wanted_file(model)


def _wanted_file(model: Model) -> Iterator[Fault]:
    wanted = model.config.default_model_filename or FILES.get(model.backend)
    for folder in model.versions if wanted else ():
        if not (folder / str(wanted)).exists():
            has = sorted(one.name for one in folder.iterdir())
            near = did_you_mean(str(wanted), has, cutoff=0.5)
            hint = near or f" There is {', '.join(has) or 'nothing'}"
            yield Fault(f"there is no {wanted}.{hint}", path=folder)


def _environment(model: Model, repository: Repository) -> Iterator[Fault]:
    """What lies elsewhere is the server's to know."""
    value = parameters_of(model).get(ENVIRONMENT, "")
    path = model.path / value.removeprefix(MODEL_DIRECTORY).lstrip("/")
    told = model.backend == "python" and value.startswith(MODEL_DIRECTORY)
    if told and not path.exists():
        line = model.line("parameters", Entry(ENVIRONMENT))
        yield Fault(f"{ENVIRONMENT} is {value}, where nothing is", line)


def _links(model: Model) -> Iterator[Path]:
    if model.path.is_symlink():
        yield model.path
    for folder, folders, names in os.walk(model.path):
        yield from (
            path for name in (*folders, *names) if (path := Path(folder, name)).is_symlink()
        )


def _broken(model: Model, repository: Repository) -> Iterator[Fault]:
    for link in _links(model):
        if not link.exists():
            yield Fault(f"the link leads to {link.readlink()}, where nothing is", path=link)


def _leaving(model: Model, repository: Repository) -> Iterator[Fault]:
    # What belongs to a build moves with it: then the build is the border.
    border = (repository.directory or repository.path).resolve()
    for link in _links(model):
        target = link.readlink()
        if link.exists() and (target.is_absolute() or not link.resolve().is_relative_to(border)):
            yield Fault(f"the link leads to {target}, out of {border.name}", path=link)


def _external(model: Model, repository: Repository) -> Iterator[Fault]:
    for path in onnx_files(model):
        yield from (Fault(message, path=path) for message in external_faults(path))


def _unread(model: Model, repository: Repository) -> Iterator[Fault]:
    if not onnx_installed():
        yield from (
            Fault("where its weights lie was not looked at", path=path)
            for path in onnx_files(model)
        )


RULES = (
    Rule(
        id="name-differs",
        severity=Severity.ERROR,
        title="A model's name is that of its folder.",
        why="The server passes over a folder whose name is another.",
        mend="Rename the folder, or write its name.",
        server=Verdict.REFUSES,
        check=_name,
    ),
    Rule(
        id="max-batch-size-missing",
        severity=Severity.WARNING,
        title="`max_batch_size` is written, be it 0.",
        why="Left out it means 0, and dims then have a batch axis of their own; with "
        "auto-complete it can mean 4. Who reads the file cannot tell which.",
        mend="Write max_batch_size: 0, or the largest batch.",
        server=Verdict.ACCEPTS,
        check=_max_batch,
    ),
    Rule(
        id="max-batch-size-negative",
        severity=Severity.ERROR,
        title="`max_batch_size` is 0 or more.",
        why="There is no such batch.",
        mend="Write max_batch_size: 0 where the model does not batch.",
        server=Verdict.REFUSES,
        check=_negative_batch,
    ),
    Rule(
        id="version-missing",
        severity=Severity.ERROR,
        title="A model has a folder of a version, an ensemble too.",
        why="The server loads versions: a model without one is not loaded, and an ensemble's is "
        "empty. Git keeps no empty folders, so this one is easily lost.",
        mend="Make a folder called 1 in the model's own.",
        server=Verdict.REFUSES,
        check=_version,
    ),
    Rule(
        id="version-name",
        severity=Severity.ERROR,
        title="A folder of a version is called by its number, and nothing more.",
        why="Triton takes `2.old` for version 2 and opens the folder 2: it does not load the "
        "model, or waits for it for ever. Of a number that 64 bits do not hold it dies.",
        mend="Rename the folder, or move it out of the model's own.",
        server=Verdict.WAITS,
        check=_version_name,
        anyway=True,
    ),
    Rule(
        id="version-policy",
        severity=Severity.ERROR,
        title="A policy asks for versions, and they are there.",
        why="The model is not loaded, or not in that version.",
        mend="Ask for versions that have a folder, or take version_policy out: the latest is then "
        "served.",
        server=Verdict.REFUSES,
        check=_policy,
    ),
    Rule(
        id="platform-unknown",
        severity=Severity.ERROR,
        title="A platform is one that Triton knows.",
        why="The model is not loaded.",
        mend="Spell it as Triton does, or name a backend instead.",
        server=Verdict.REFUSES,
        check=_platform,
    ),
    Rule(
        id="backend-missing",
        severity=Severity.WARNING,
        title="What runs a model is written.",
        why="The server guesses by the names of files, and another file changes the guess.",
        mend="Write backend, or platform for an ensemble or a TensorRT plan.",
        server=Verdict.ACCEPTS,
        check=_backend,
    ),
    Rule(
        id="platform-and-backend",
        severity=Severity.ERROR,
        title="A platform is of the backend that is written beside it.",
        why="Triton 2.51 goes by the backend; later servers refuse the pair.",
        mend="Take one of the two out.",
        server=Verdict.ACCEPTS,
        check=_pair,
    ),
    Rule(
        id="model-file",
        severity=Severity.ERROR,
        title="Every version has the file that its backend opens.",
        why="The model is not loaded.",
        mend="Put it there under that name, or write its name as default_model_filename.",
        server=Verdict.UNASKED,
        check=_file,
    ),
    Rule(
        id="python-model",
        severity=Severity.ERROR,
        title="Every version of a Python model has its `model.py`.",
        why="Triton says so in a line that is no error, and waits for ever: it is never ready.",
        mend="Put it there under that name, or write its name as default_model_filename.",
        server=Verdict.WAITS,
        check=_python_file,
    ),
    Rule(
        id="python-environment",
        severity=Severity.ERROR,
        title="The environment that a Python model brings is there.",
        why="The model is not loaded.",
        mend="Put the archive, or the folder, there; or take EXECUTION_ENV_PATH out.",
        server=Verdict.REFUSES,
        check=_environment,
    ),
    Rule(
        id="link-broken",
        severity=Severity.ERROR,
        title="Links lead to something.",
        why="The file that the backend opens is not there. Where the link stands for a model, or "
        "beside models, the server reads none of them.",
        mend="Build again, put the file where the link leads, or remove the link.",
        server=Verdict.UNASKED,
        check=_broken,
        anyway=True,
    ),
    Rule(
        id="link-leaves",
        severity=Severity.WARNING,
        title="Links stay inside the repository; in a build, inside the build.",
        why="Copied, moved or mounted elsewhere, as in a container, the repository is incomplete.",
        mend="Link inside it, by a relative path, or put the file itself there.",
        server=Verdict.UNASKED,
        check=_leaving,
        anyway=True,
    ),
    Rule(
        id="external-data",
        severity=Severity.ERROR,
        title="The weights of an ONNX file lie in its own folder, or below.",
        why="ONNX Runtime refuses absolute paths, and weights outside of the folder in which the "
        "file lies, links of both followed.",
        mend="Put or hard-link the weights beside the file, under the name that it has for them.",
        server=Verdict.UNASKED,
        check=_external,
    ),
    Rule(
        id="external-data-unread",
        severity=Severity.NOTE,
        title="Where an ONNX file's weights lie can be looked at.",
        why="It takes the package `onnx`, which is not installed here.",
        mend="Run `pip install onnx`.",
        server=Verdict.UNASKED,
        check=_unread,
    ),
)
