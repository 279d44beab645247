"""What Triton gives a Python model at its start: the build and the operator's parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from iblip.engines.language_model.opening import EngineLimits
from iblip.engines.text.instructions import InstructionTokenizer
from iblip.engines.vision_cache.cache import VisionCache
from iblip.engines.vision_cache.directory import CacheDirectory
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError
from iblip.serving.decoding.pool import Decoders
from iblip.serving.decoding.settings import DecodingSettings
from iblip.serving.steps.policy import CALL_KEY_VARIABLE, Policy
from iblip.serving.steps.questions import QuestionReader
from iblip.serving.wire.contract import ServerContract


@dataclass(frozen=True, kw_only=True)
class StepArguments:
    """Where a step's build lies, where the step runs, and the parameters of its `config.pbtxt`.

    Attributes:
        directory: the build.
        manifest: of that build.
        parameters: of the model's config, strings by name.
        device: index of the GPU that Triton gave this instance; 0 if it gave none. An engine on a
            CPU ignores it.
        instances: number of the model's instances, on all devices.
        row_axis: whether inputs have an axis more: `serving.repository.model_config.add_row_axis`.
    """

    directory: Path
    manifest: Manifest
    parameters: Mapping[str, str]
    device: int
    instances: int
    row_axis: bool

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> Self:
        """From the mapping that `TritonPythonModel.initialize` receives.

        Raises:
            BuildDirectoryError: the parameter `directory` is not a path from the model's folder to
                a build.
        """
        config = json.loads(args["model_config"])
        entries = config.get("parameters", {})
        parameters = {name: entry["string_value"] for name, entry in entries.items()}
        directory = Path(args["model_repository"]) / parameters["directory"]
        resolved = directory.resolve()
        # Triton's Python reads names of files as ASCII, and no library takes what it makes of
        # others; the server then reaches the build by a link with a plain name.
        directory = resolved if str(resolved).isascii() else directory
        on_gpu = args["model_instance_kind"] == "GPU"  # the others are CPU and MODEL
        return cls(
            directory=directory,
            manifest=Manifest.read(directory),
            parameters=parameters,
            device=int(args["model_instance_device_id"]) if on_gpu else 0,
            # Triton has written into each group the GPUs that it is on.
            instances=sum(
                group["count"] * max(1, len(group["gpus"])) for group in config["instance_group"]
            ),
            row_axis=any("reshape" in tensor for tensor in config.get("input", ())),
        )

    def check_alone(self) -> None:
        """Refuses to be one of several instances of a model that schedules its own requests.

        Triton gives a request to any instance, however busy the others are. A cancellation goes to
        any instance as well, and so may miss its request.

        Raises:
            OptionError: there are several instances.
        """
        if self.instances > 1:
            raise OptionError(
                f"config.pbtxt asks for {self.instances} instances, but one of this model "
                "answers many requests. Write `count: 1`, and on GPUs the index of one, as in "
                "`gpus: [ 0 ]`; for more at once raise `slots`, or start a server for each GPU."
            )

    @property
    def limits(self) -> EngineLimits:
        """The limits of the language model; those of the build where a parameter is missing.

        Raises:
            OptionError: the parameter `slots`, `max_length` or `queue` is not an integer, 1 or
                more; or `prefix_cache` is neither true nor false.
        """
        return EngineLimits(
            slots=self._limit("slots"),
            positions=self._limit("max_length"),
            queue=self._limit("queue"),
            prefix_cache=self._switch("prefix_cache"),
        )

    def question_reader(self, policy: Policy) -> QuestionReader:
        """What reads this model's requests: its limits are those that clients are told.

        Raises:
            BuildDirectoryError: the instruction's tokenizer is missing or broken.
            ContractError: the parameter `limits` is damaged.
        """
        return QuestionReader(
            limits=ServerContract.from_parameters(self.parameters).limits,
            tokenizer=InstructionTokenizer.from_build(self.directory, self.manifest),
            policy=policy,
            most_encoded=DecodingSettings.from_parameters(self.parameters).most_sent,
            call_key=os.environ.get(CALL_KEY_VARIABLE, ""),
        )

    def vision_cache(self, environment: Mapping[str, str]) -> VisionCache | None:
        """The cache of encoded images; `None` where the operator has named no directory.

        Only on the disk: in memory there is Triton's response cache.
        """
        directory = CacheDirectory.from_environment(environment)
        if directory is None:
            return None
        return VisionCache(self.manifest, memory_bytes=0, directory=directory)

    def decoders(self) -> Decoders:
        """What decodes this model's images; starts nothing yet.

        Raises:
            OptionError: a parameter of it is out of range.
        """
        settings = DecodingSettings.from_parameters(self.parameters)
        return Decoders(self.manifest.preprocessing, settings)

    def _limit(self, name: str) -> int | None:
        text = self.parameters.get(name)
        if text is None:
            return None
        if not text.isdecimal() or not int(text):
            raise OptionError(f"{name} is {text!r} in config.pbtxt; expected an integer, 1 or more")
        return int(text)

    def _switch(self, name: str) -> bool | None:
        text = self.parameters.get(name)
        if text not in (None, "true", "false"):
            raise OptionError(f"{name} is {text!r} in config.pbtxt; expected true or false")
        return None if text is None else text == "true"

    @property
    def threads(self) -> int | None:
        """Threads of the engine; `None` uses all of the machine's.

        Raises:
            OptionError: the parameter `threads` is not an integer, 0 or more.
        """
        text = self.parameters.get("threads", "0")
        if not text.isdecimal():
            raise OptionError(
                f"threads is {text!r} in config.pbtxt; expected an integer, 0 or more"
            )
        return int(text) or None
