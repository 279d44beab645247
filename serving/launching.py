"""What is settled before a build is served: that this machine can, and with which environment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from iblip.export.artifact.manifest import LANGUAGE_MODEL, Manifest
from iblip.export.errors import OptionError
from iblip.serving.repository.assembling import check_backends
from iblip.serving.repository.files import check_files
from iblip.serving.server.installation import find_triton


def check_servable(directory: Path, manifest: Manifest, triton: Path | None = None) -> None:
    """Refuses to serve a build that is incomplete, or that the Triton here cannot serve.

    Args:
        directory: of the build.
        manifest: of the same build.
        triton: a `tritonserver`, or the folder above its `bin`; `None` looks for one.

    Raises:
        ServingError: there is no Triton, or it lacks the backend of one of the models.
        BuildDirectoryError: a file of the build is missing or truncated.
    """
    check_backends(directory, find_triton(triton))
    check_files(directory, manifest)


def environment_of_models(manifest: Manifest, vllm_python: Path | None = None) -> Mapping[str, str]:
    """The variables that tell the server's models where vLLM is; looked up before any start.

    Args:
        manifest: of the build.
        vllm_python: vLLM's environment, or its Python; `None` looks for it.

    Raises:
        OptionError: it is given, and the language model does not run on vLLM.
        EngineError: there is no such environment.
    """
    record = manifest.components.get(LANGUAGE_MODEL)
    if record is None or record.engine.kind != "vllm":
        if vllm_python is None:
            return {}
        raise OptionError(
            f"--vllm-python is {vllm_python}, but this build's language model does not run on "
            "vLLM. Leave --vllm-python out, or build with --llm-engine vllm."
        )
    from iblip.engines.language_model.vllm.environment import VARIABLE, find_python

    return {VARIABLE: str(find_python(vllm_python))}
