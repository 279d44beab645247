"""What a client must know of a server, as parameters of the model's config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self, TypeVar

from iblip.export.artifact.manifest import Manifest, Preprocessing
from iblip.export.artifact.typed import from_fields
from iblip.export.errors import ContractError
from iblip.export.system.json_text import parse_json
from iblip.serving.wire.names import VERSION


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request to this server may be.

    Attributes:
        max_instruction: most tokens of the prompt that the Q-Former reads; `None` if it reads none.
        images: most images in one request.
        max_length: positions shared by visual prompts, prompt and answer.
        num_query_tokens: how many of those each image takes.
        default_max_new_tokens: most tokens of an answer whose request names no limit.
        slots: most answers (`n`) or beams of one request.
        queue: most requests that may wait.
        max_prompt_bytes: most bytes of a prompt, in UTF-8.
        max_option_bytes: most bytes of a request's parameters, as JSON.
        max_logprobs: most log-probabilities of one request, in all its answers.
    """

    max_instruction: int | None
    images: int
    max_length: int
    num_query_tokens: int
    default_max_new_tokens: int
    slots: int
    queue: int
    max_prompt_bytes: int
    max_option_bytes: int
    max_logprobs: int


@dataclass(frozen=True, kw_only=True)
class ServedBuild:
    """Which build a server serves.

    Attributes:
        name: of the checkpoint.
        family: of the model, such as `instructblip`.
        language_model: its architecture, transformers' `model_type`, such as `llama`.
        precision: by component.
        created: UTC, ISO 8601.
    """

    name: str
    family: str
    language_model: str
    precision: Mapping[str, str]
    created: str


T = TypeVar("T", Preprocessing, Limits, ServedBuild)


@dataclass(frozen=True, kw_only=True)
class ServerContract:
    """What a client must know of a server: read from the model's own config.

    Attributes:
        preprocessing: what to do to an image.
        limits: what a request may be.
        build: which build is served.
        prompt_template: the text that the server puts around a prompt, with `{image}` and
            `{prompt}`; empty where the server is of a version that did not say it.
    """

    preprocessing: Preprocessing
    limits: Limits
    build: ServedBuild
    prompt_template: str = ""

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """The contract of a build."""
        text, model = manifest.text, manifest.language_model
        reads_instruction = text.qformer_tokenizer is not None
        limits = Limits(
            max_instruction=manifest.max_instruction if reads_instruction else None,
            images=manifest.limits.images,
            max_length=manifest.limits.max_length,
            num_query_tokens=model.num_query_tokens,
            default_max_new_tokens=model.default_max_new_tokens,
            slots=manifest.limits.slots,
            queue=manifest.limits.queue,
            max_prompt_bytes=manifest.limits.max_prompt_bytes,
            max_option_bytes=manifest.limits.max_option_bytes,
            max_logprobs=manifest.limits.max_logprobs,
        )
        build = ServedBuild(
            name=manifest.name,
            family=manifest.family,
            language_model=model.architecture,
            precision=dict(manifest.precision),
            created=manifest.created,
        )
        return cls(
            preprocessing=manifest.preprocessing,
            limits=limits,
            build=build,
            prompt_template=text.prompt_template,
        )

    def to_parameters(self) -> dict[str, str]:
        """As parameters of the model's config: JSON strings by name."""
        return {
            "wire_version": str(VERSION),
            "preprocessing": json.dumps(asdict(self.preprocessing)),
            "limits": json.dumps(asdict(self.limits)),
            "build": json.dumps(asdict(self.build)),
            "prompt_template": json.dumps(self.prompt_template),
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Self:
        """The inverse of `to_parameters`.

        Raises:
            ContractError: the wire version differs, or a parameter is missing or damaged.
        """
        version = parameters.get("wire_version")
        if version != str(VERSION):
            raise ContractError(
                f"the server's wire version is {version or 'none'}; this client speaks {VERSION}. "
                "Install the client that came with the build."
            )
        return cls(
            preprocessing=_read_parameter(Preprocessing, parameters, "preprocessing"),
            limits=_read_parameter(Limits, parameters, "limits"),
            build=_read_parameter(ServedBuild, parameters, "build"),
            prompt_template=_read_template(parameters.get("prompt_template", '""')),
        )


def _read_parameter(kind: type[T], parameters: Mapping[str, str], name: str) -> T:
    text = parameters.get(name)
    try:
        return from_fields(kind, parse_json(text or "null"))
    except ValueError as error:
        raise ContractError(
            f"the parameter {name} of the server's model config is "
            f"{'missing' if text is None else text[:200]}; expected a JSON object of "
            f"{', '.join(field.name for field in fields(kind))}. Serve a build made by this "
            "version, or install the client that came with the build."
        ) from error


def _read_template(text: str) -> str:
    try:
        template = parse_json(text)
    except ValueError:
        template = None
    if isinstance(template, str):
        return template
    raise ContractError(
        f"the parameter prompt_template of the server's model config is {text[:200]}; expected a "
        "JSON string. Serve a build made by this version."
    )
