"""What Triton tells a Python model when it starts it, as a build and the operator's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engines.language_model.opening import EngineLimits
from export.errors import OptionError
from export.manifest import Manifest


@dataclass(frozen=True, kw_only=True)
class StepArguments:
    """Where a step's build lies, and the parameters of its `config.pbtxt`.

    Attributes:
        directory: the build.
        manifest: of that build.
        parameters: of the model's config, strings by name.
    """

    directory: Path
    manifest: Manifest
    parameters: Mapping[str, str]

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> Self:
        """From the mapping that `TritonPythonModel.initialize` receives.

        Raises:
            BuildDirectoryError: the parameter `build` does not lead from the model's folder to a
                build.
        """
        entries = json.loads(args["model_config"]).get("parameters", {})
        parameters = {name: entry["string_value"] for name, entry in entries.items()}
        directory = (Path(args["model_repository"]) / parameters["build"]).resolve()
        return cls(directory=directory, manifest=Manifest.read(directory), parameters=parameters)

    @property
    def limits(self) -> EngineLimits:
        """Of the language model; the build's own where a parameter is missing.

        Raises:
            OptionError: the parameter `slots`, `max_length` or `queue` is not a whole number, 1 or
                more.
        """
        return EngineLimits(
            slots=self._limit("slots"),
            positions=self._limit("max_length"),
            queue=self._limit("queue"),
        )

    def _limit(self, name: str) -> int | None:
        text = self.parameters.get(name)
        if text is None:
            return None
        if not text.isdecimal() or not int(text):
            raise OptionError(f"{name} is {text!r} in config.pbtxt; wanted a number, 1 or more")
        return int(text)

    @property
    def threads(self) -> int | None:
        """Threads of the engine; `None` takes what the machine has.

        Raises:
            OptionError: the parameter `threads` is not a whole number, 0 or more.
        """
        text = self.parameters.get("threads", "0")
        if not text.isdecimal():
            raise OptionError(f"threads is {text!r} in config.pbtxt; wanted a number, 0 or more")
        return int(text) or None
