"""Rules about this project's builds: whether configs agree with the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from iblip.export.artifact.contract import TensorSpec
from iblip.export.artifact.manifest import MANIFEST
from iblip.export.system.json_text import parse_json
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import FILES, Model, Repository, parameters_of, value_name
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.tensor_shapes import fits
from iblip.serving.lint.text_format import Entry
from iblip.serving.repository.assembling import COMPONENTS
from iblip.serving.repository.files import faults, files_of_component, files_of_texts
from iblip.serving.repository.model_config import DATA_TYPES
from iblip.serving.server.outdated import is_outdated
from iblip.serving.wire.names import MODEL, UNARY

GRAPH = "model"
"""The graph of a component that Triton batches."""

PYTHON_MODELS = frozenset({*COMPONENTS, MODEL, UNARY})
"""Models of a build that may run in the Python backend."""

SHARED_LIMITS = ("slots", "max_length", "queue")
"""Limits of the language model that clients are told as well."""


def _contract(model: Model, repository: Repository) -> Iterator[tuple[str, int, Any, TensorSpec]]:
    """The tensors of a component in its contract: side, index, tensor, and the contract's spec."""
    for side, specs in _specs(model, repository).items():
        for index, tensor in enumerate(getattr(model.config, side)):
            if tensor.name in specs:
                yield side, index, tensor, specs[tensor.name]


def _specs(model: Model, repository: Repository) -> dict[str, dict[str, TensorSpec]]:
    record = repository.record(model)
    if record is None or GRAPH not in record.graphs:
        return {}
    contract = record.graphs[GRAPH].contract
    return {
        "input": {spec.name: spec for spec in contract.inputs},
        "output": {spec.name: spec for spec in contract.outputs},
    }


def _check_engine_tensor(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, specs in _specs(model, repository).items():
        tensors = [tensor.name for tensor in getattr(model.config, side)]
        for name in sorted(specs.keys() - set(tensors)):
            yield Fault(f"the engine's {side} {name!r} is missing", model.line(side))
        for index, name in enumerate(tensors):
            if name not in specs:
                has = ", ".join(specs)
                line = model.line(side, index)
                yield Fault(f"the engine has no {side} {name!r}; it has {has}", line)


def _check_engine_data_type(model: Model, repository: Repository) -> Iterator[Fault]:
    from tritonclient.grpc import model_config_pb2

    for side, index, tensor, spec in _contract(model, repository):
        declared = value_name(model_config_pb2.DataType, tensor.data_type)
        actual = DATA_TYPES[spec.dtype]
        if declared != actual:
            line = model.line(side, index, "data_type")
            yield Fault(f"{tensor.name!r} is {declared}; the engine has {actual}", line)


def _check_engine_shape(model: Model, repository: Repository) -> Iterator[Fault]:
    for side, index, tensor, spec in _contract(model, repository):
        axes = spec.axes[1:] if model.config.max_batch_size > 0 else spec.axes
        sizes = [axis if isinstance(axis, int) else -1 for axis in axes]
        if not fits(tensor.dims, sizes):
            line = model.line(side, index, "dims")
            yield Fault(
                f"{tensor.name!r} has dims {list(tensor.dims)}; the engine has {sizes}", line
            )


def _check_limits_differ(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.name != MODEL or repository.manifest is None:
        return
    limits, line = limits_of(model), model.line("parameters", Entry("limits"))
    if limits is None:
        yield Fault("the parameter limits is not a JSON object", line)
        return
    actual = parameters_of(model)
    for name, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            yield Fault(f"clients are told {name} {value!r}; expected an integer", line)
    for name in SHARED_LIMITS:
        if name in limits and actual.get(name, str(limits[name])) != str(limits[name]):
            message = f"clients are told {name} {limits[name]}; the model has {actual[name]}"
            yield Fault(message, line)


def _check_build_place(model: Model, repository: Repository) -> Iterator[Fault]:
    build = parameters_of(model).get("directory")
    if repository.manifest is None or model.backend != "python":
        return
    line = model.line("parameters", Entry("directory"))
    if build is None and model.name in PYTHON_MODELS:
        yield Fault("there is no parameter directory", line)
    elif build is not None and not (model.path / build / MANIFEST).is_file():
        yield Fault(f"the parameter directory is {build!r}, where there is no {MANIFEST}", line)


def _check_build_files(model: Model, repository: Repository) -> Iterator[Fault]:
    manifest, record = repository.manifest, repository.record(model)
    if manifest is None or repository.directory is None:
        return
    files = dict(files_of_component(record)) if record is not None else {}
    if model.name == MODEL:
        files |= files_of_texts(manifest)
    for path, fault in faults(repository.directory, files):
        yield Fault(f"{path} of the build: {fault}", line=1)


def _outdated(model: Model, repository: Repository) -> Iterator[Fault]:
    for folder in model.versions:
        if is_outdated(folder / FILES["python"]):
            message = "it imports `serving`, which is `iblip.serving` now"
            yield Fault(message, path=folder / FILES["python"])


def limits_of(model: Model) -> dict[str, Any] | None:
    """What clients are told; `None` where it is damaged."""
    try:
        limits = parse_json(parameters_of(model).get("limits", "{}"))
    except ValueError:
        return None
    return limits if isinstance(limits, dict) else None


RULES = (
    Rule(
        id="engine-tensor",
        severity=Severity.ERROR,
        title="In a build, a component has the tensors of its engine.",
        why="Requests fail, or the model is not loaded.",
        mend="Use the names in the manifest, or rebuild.",
        server=Verdict.UNASKED,
        check=_check_engine_tensor,
    ),
    Rule(
        id="engine-data-type",
        severity=Severity.ERROR,
        title="In a build, a tensor has the data type that its engine has.",
        why="Requests fail, or the model is not loaded.",
        mend="Use the data type in the manifest, or rebuild.",
        server=Verdict.UNASKED,
        check=_check_engine_data_type,
    ),
    Rule(
        id="engine-shape",
        severity=Severity.ERROR,
        title="In a build, a tensor has sizes that its engine accepts.",
        why="Requests fail, or the model is not loaded.",
        mend="Use the sizes in the manifest, without the batch, or rebuild.",
        server=Verdict.UNASKED,
        check=_check_engine_shape,
    ),
    Rule(
        id="limits-differ",
        severity=Severity.WARNING,
        title="In a build, clients learn the actual limits of the language model.",
        why="A client refuses what the server would accept, or sends what it refuses.",
        mend="Write the same numbers in both parameters.",
        server=Verdict.ACCEPTS,
        check=_check_limits_differ,
    ),
    Rule(
        id="build-files",
        severity=Severity.ERROR,
        title="In a build, the files in the manifest exist, and plans have their original size.",
        why="The model is not loaded.",
        mend="Copy the whole build again, with its links, or rebuild it.",
        server=Verdict.REFUSES,
        check=_check_build_files,
    ),
    Rule(
        id="build-place",
        severity=Severity.ERROR,
        title="In a build, Python models can find the manifest.",
        why="They need it to load their engines.",
        mend='Write "../..", the path from a model\'s folder to the build.',
        server=Verdict.REFUSES,
        check=_check_build_place,
    ),
    Rule(
        id="model-outdated",
        severity=Severity.ERROR,
        title="In a build, Python models import this project as the one package `iblip`.",
        why="Until it was one, their `model.py` imported `serving` and `engines`: the model is not "
        "loaded. `iblip serve` refuses the build before it starts a server.",
        mend="Build it again: `iblip doctor BUILD` has the command.",
        server=Verdict.REFUSES,
        check=_outdated,
    ),
)
