"""Rules of the text of a config: whether Triton can read it at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from iblip.export.messages import did_you_mean
from iblip.serving.lint.fault import Fault
from iblip.serving.lint.reading import CONFIG, Model, Repository
from iblip.serving.lint.rule import Rule, Severity, Verdict
from iblip.serving.lint.text_format import Node

SCHEDULERS = ("ensemble_scheduling", "dynamic_batching", "sequence_batching")
"""Fields of which a config has one at most."""


def _missing(model: Model, repository: Repository) -> Iterator[Fault]:
    if _without_config(model) and model.guess():
        yield Fault(f"there is no {CONFIG}")


def _no_model(model: Model, repository: Repository) -> Iterator[Fault]:
    if _without_config(model) and not model.guess():
        message = f"there is neither a {CONFIG} nor a version with a file that a backend opens"
        yield Fault(message, path=model.path)


def _unreadable(model: Model, repository: Repository) -> Iterator[Fault]:
    if _has_config(model) and model.fault is not None and model.fault.line is None:
        yield model.fault


def _without_config(model: Model) -> bool:
    """A folder, that is: a link to nothing lacks more."""
    return model.path.is_dir() and not _has_config(model)


def _has_config(model: Model) -> bool:
    return os.path.lexists(model.config_path)


def _encoding(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.damage is not None:
        yield model.damage


def _syntax(model: Model, repository: Repository) -> Iterator[Fault]:
    understood = (*_values(model, repository), *_schedulers(model, repository))
    if model.fault is not None and model.fault.line is not None and not understood:
        yield model.fault


def _fields(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _described(model.tree, _descriptor()):
        word = name.isidentifier() or name.isdigit()  # what is neither, the parser complains of
        if word and name not in message.fields_by_name:
            hint = did_you_mean(name, message.fields_by_name)
            yield Fault(f"{message.name} has no field {name!r}.{hint}", line=node.line)


def _values(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _described(model.tree, _descriptor()):
        field = message.fields_by_name.get(name)
        if field is None or field.enum_type is None or not node.text:
            continue
        known = [value.name for value in field.enum_type.values]
        numbers = map(str, field.enum_type.values_by_number)
        if node.text not in (*known, *numbers):
            hint = did_you_mean(node.text, known) or f" Known: {', '.join(known)}"
            yield Fault(f"{name} has no value {node.text}.{hint}", line=node.line)


def _schedulers(model: Model, repository: Repository) -> Iterator[Fault]:
    there = [name for name in SCHEDULERS if name in model.tree.fields]
    if len(there) > 1:
        on = "an ensemble" if there[0] == SCHEDULERS[0] else "one model"
        yield Fault(f"{there[1]} and {there[0]} on {on}", line=model.line(there[1]))


def _descriptor() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelConfig.DESCRIPTOR


def _described(tree: Node, message: Any) -> Iterator[tuple[str, Node, Any]]:
    """Every field with the description of its message; none below a field that is not known."""
    for name, nodes in tree.fields.items():
        field = message.fields_by_name.get(name)
        for node in nodes:
            yield name, node, message
            if field is not None and field.message_type is not None:
                yield from _described(node, field.message_type)


RULES = (
    Rule(
        id="config-missing",
        severity=Severity.WARNING,
        title="A model has a `config.pbtxt`.",
        why="A server in production runs with --disable-auto-complete-config, and guesses nothing.",
        mend="Write a config.pbtxt.",
        server=Verdict.REFUSES,
        check=_missing,
        anyway=True,
    ),
    Rule(
        id="no-model",
        severity=Severity.ERROR,
        title="Every folder of a repository is a model, hidden ones too.",
        why="The server takes it for one that cannot be loaded, and ends where it runs with "
        "--exit-on-error.",
        mend="Move it out of the repository.",
        server=Verdict.REFUSES,
        check=_no_model,
        anyway=True,
    ),
    Rule(
        id="config-unreadable",
        severity=Severity.ERROR,
        title="A `config.pbtxt` is a file that can be read.",
        why="The model is not loaded; of a folder in its place the server dies.",
        mend="Put the file there, and let the server's user read it.",
        server=Verdict.REFUSES,
        check=_unreadable,
        anyway=True,
    ),
    Rule(
        id="config-encoding",
        severity=Severity.WARNING,
        title="A config is UTF-8.",
        why="The server reads it as it is; what is written there comes out as something else.",
        mend="Save it as UTF-8.",
        server=Verdict.ACCEPTS,
        check=_encoding,
        anyway=True,
    ),
    Rule(
        id="config-syntax",
        severity=Severity.ERROR,
        title="A config is text of protobuf's text format.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Mend the line.",
        server=Verdict.REFUSES,
        check=_syntax,
        anyway=True,
    ),
    Rule(
        id="unknown-field",
        severity=Severity.ERROR,
        title="Every field is one that Triton's ModelConfig has.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Spell the field as Triton does, or take it out.",
        server=Verdict.REFUSES,
        check=_fields,
        anyway=True,
    ),
    Rule(
        id="unknown-value",
        severity=Severity.ERROR,
        title="Every kind, data type or action is one that Triton has.",
        why="The server says that it failed to read the file, and neither where nor why.",
        mend="Use one of the values that Triton has.",
        server=Verdict.REFUSES,
        check=_values,
        anyway=True,
    ),
    Rule(
        id="two-schedulers",
        severity=Severity.ERROR,
        title="A config has one of ensemble_scheduling, dynamic_batching and sequence_batching.",
        why="They are alternatives: the server says that it failed to read the file, and no more.",
        mend="Keep one. The models of an ensemble's steps batch; the ensemble does not.",
        server=Verdict.REFUSES,
        check=_schedulers,
        anyway=True,
    ),
)
