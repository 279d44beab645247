"""Rules about the text of a config: whether Triton can read it at all."""

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
"""A config may have only one of these fields."""


def _check_config_missing(model: Model, repository: Repository) -> Iterator[Fault]:
    if _without_config(model) and model.guess():
        yield Fault(f"there is no {CONFIG}")


def _check_no_model(model: Model, repository: Repository) -> Iterator[Fault]:
    if _without_config(model) and not model.guess():
        message = f"there is neither a {CONFIG} nor a version folder with a model file"
        yield Fault(message, path=model.path)


def _check_config_unreadable(model: Model, repository: Repository) -> Iterator[Fault]:
    if _has_config(model) and model.fault is not None and model.fault.line is None:
        yield model.fault


def _without_config(model: Model) -> bool:
    """Whether the model is a folder without a config; a broken link lacks more than that."""
    return model.path.is_dir() and not _has_config(model)


def _has_config(model: Model) -> bool:
    return os.path.lexists(model.config_path)


def _check_config_encoding(model: Model, repository: Repository) -> Iterator[Fault]:
    if model.damage is not None:
        yield model.damage


def _check_config_syntax(model: Model, repository: Repository) -> Iterator[Fault]:
    explained = (
        *_check_unknown_value(model, repository),
        *_check_two_schedulers(model, repository),
    )
    if model.fault is not None and model.fault.line is not None and not explained:
        yield model.fault


def _check_unknown_field(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _fields_with_descriptors(model.tree, _descriptor()):
        word = name.isidentifier() or name.isdigit()  # the parser reports anything else
        if word and name not in message.fields_by_name:
            hint = did_you_mean(name, message.fields_by_name)
            yield Fault(f"{message.name} has no field {name!r}.{hint}", line=node.line)


def _check_unknown_value(model: Model, repository: Repository) -> Iterator[Fault]:
    for name, node, message in _fields_with_descriptors(model.tree, _descriptor()):
        field = message.fields_by_name.get(name)
        if field is None or field.enum_type is None or not node.text:
            continue
        known = [value.name for value in field.enum_type.values]
        numbers = map(str, field.enum_type.values_by_number)
        if node.text not in (*known, *numbers):
            hint = did_you_mean(node.text, known) or f" Known: {', '.join(known)}"
            yield Fault(f"{name} has no value {node.text}.{hint}", line=node.line)


def _check_two_schedulers(model: Model, repository: Repository) -> Iterator[Fault]:
    present = [name for name in SCHEDULERS if name in model.tree.fields]
    if len(present) > 1:
        on = "an ensemble" if present[0] == SCHEDULERS[0] else "one model"
        yield Fault(f"{present[1]} and {present[0]} on {on}", line=model.line(present[1]))


def _descriptor() -> Any:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2.ModelConfig.DESCRIPTOR


def _fields_with_descriptors(tree: Node, message: Any) -> Iterator[tuple[str, Node, Any]]:
    """Every field with its message's descriptor; none below an unknown field."""
    for name, nodes in tree.fields.items():
        field = message.fields_by_name.get(name)
        for node in nodes:
            yield name, node, message
            if field is not None and field.message_type is not None:
                yield from _fields_with_descriptors(node, field.message_type)


RULES = (
    Rule(
        id="config-missing",
        severity=Severity.WARNING,
        title="A model has a `config.pbtxt`.",
        why="Production servers run with --disable-auto-complete-config and do not guess.",
        mend="Add a config.pbtxt.",
        server=Verdict.REFUSES,
        check=_check_config_missing,
        without_config=True,
    ),
    Rule(
        id="no-model",
        severity=Severity.ERROR,
        title="Every folder of a repository is a model, even a hidden one.",
        why="The server takes the folder for a model that cannot be loaded, and exits if it runs "
        "with --exit-on-error.",
        mend="Move it out of the repository.",
        server=Verdict.REFUSES,
        check=_check_no_model,
        without_config=True,
    ),
    Rule(
        id="config-unreadable",
        severity=Severity.ERROR,
        title="A `config.pbtxt` is a readable file.",
        why="The model is not loaded; a folder in its place crashes the server.",
        mend="Put the file there, readable for the server's user.",
        server=Verdict.REFUSES,
        check=_check_config_unreadable,
        without_config=True,
    ),
    Rule(
        id="config-encoding",
        severity=Severity.WARNING,
        title="A config is UTF-8.",
        why="The server reads the bytes as they are, so the text comes out as something else.",
        mend="Save it as UTF-8.",
        server=Verdict.ACCEPTS,
        check=_check_config_encoding,
        without_config=True,
    ),
    Rule(
        id="config-syntax",
        severity=Severity.ERROR,
        title="A config is in protobuf's text format.",
        why="The server only says that it failed to read the file, not where or why.",
        mend="Correct the line.",
        server=Verdict.REFUSES,
        check=_check_config_syntax,
        without_config=True,
    ),
    Rule(
        id="unknown-field",
        severity=Severity.ERROR,
        title="Every field exists in Triton's ModelConfig.",
        why="The server only says that it failed to read the file, not where or why.",
        mend="Spell the field as Triton does, or remove it.",
        server=Verdict.REFUSES,
        check=_check_unknown_field,
        without_config=True,
    ),
    Rule(
        id="unknown-value",
        severity=Severity.ERROR,
        title="Every kind, data type and action exists in Triton.",
        why="The server only says that it failed to read the file, not where or why.",
        mend="Use one of Triton's values.",
        server=Verdict.REFUSES,
        check=_check_unknown_value,
        without_config=True,
    ),
    Rule(
        id="two-schedulers",
        severity=Severity.ERROR,
        title="A config has at most one of ensemble_scheduling, dynamic_batching and "
        "sequence_batching.",
        why="They are alternatives: the server only says that it failed to read the file.",
        mend="Keep one. The models of an ensemble's steps batch, not the ensemble itself.",
        server=Verdict.REFUSES,
        check=_check_two_schedulers,
        without_config=True,
    ),
)
