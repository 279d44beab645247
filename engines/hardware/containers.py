"""The contents of NVIDIA's Triton containers, as far as NVIDIA publishes them.

Sources, read in November 2026:

- Triton's compatibility matrix (`docs/introduction/compatibility.md` of triton-inference-server/
  server, at 0f963c9): Python, TensorRT, vLLM, CUDA and driver of the `trtllm` and `vllm` images,
  ONNX Runtime of every release.
- NVIDIA's Triton release notes 26.07: CUDA of `26.07-py3`. They no longer name a driver; CUDA's
  compatibility guide names the oldest for each major version (`LEAST_DRIVERS`).
- TensorRT of `26.07-py3` is that of NVIDIA's TensorRT container of the same release, which
  NVIDIA/TensorRT-Model-Connect pins as 11.1.0.106: Triton's image has the same (its maintainers,
  issue 5812; users found 11.1.0.106 in it).
- Backends: `py3` has ONNX Runtime and TensorRT; `trtllm` and `vllm` have their own and Python's
  (maintainers, issue 7346).

Nothing is guessed about a container that is not in the table. This module knows nothing of this
machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iblip.export.errors import OptionError
from iblip.export.messages import did_you_mean

IMAGE = "nvcr.io/nvidia/tritonserver"
"""The image that the tags are of."""

LEAST_DRIVERS: Mapping[int, int] = {12: 525, 13: 580}
"""CUDA's major version to the oldest driver that runs all its releases, though not all their
features (NVIDIA, CUDA Compatibility, "Minor Version Compatibility")."""

LEAST_CAPABILITY = (7, 5)
"""The oldest GPUs that the containers below support (release notes 25.03 to 26.10): Turing."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """One row of `CONTAINERS`. Versions are as NVIDIA writes them.

    Attributes:
        tag: of `IMAGE`.
        triton, python, cuda: versions in the image.
        driver: the driver that this CUDA release came with; `None` if NVIDIA does not say.
        backends: Triton's backends that this project's models can use.
        tensorrt: version of its libraries; `None` if NVIDIA names none.
        onnxruntime: version in Triton's `onnxruntime` backend; `None` if there is no such backend.
        vllm: version in the image's own Python.
    """

    tag: str
    triton: str
    python: str
    cuda: str
    driver: str | None
    backends: tuple[str, ...]
    tensorrt: str | None = None
    onnxruntime: str | None = None
    vllm: str | None = None

    @property
    def image(self) -> str:
        """The image's name for `docker pull` and `FROM`."""
        return f"{IMAGE}:{self.tag}"

    @property
    def least_driver(self) -> int:
        """The major version of the oldest driver that runs its CUDA."""
        return LEAST_DRIVERS[int(self.cuda.split(".")[0])]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "backends": list(self.backends), "image": self.image}


_ROWS = (
    Container(
        tag="26.07-py3",
        triton="2.71.0",
        python="3.12.3",
        cuda="13.3.1",
        driver=None,
        backends=("python", "tensorrt", "onnxruntime"),
        tensorrt="11.1.0.106",
        onnxruntime="1.27.0",
    ),
    Container(
        tag="26.07-trtllm-python-py3",
        triton="2.71.0",
        python="3.12.3",
        cuda="13.1.0",
        driver="590.44.01",
        backends=("python",),
        tensorrt="10.14.1.48",
    ),
    Container(
        tag="26.07-vllm-python-py3",
        triton="2.71.0",
        python="3.12.3",
        cuda="13.3.0",
        driver="610.43.02",
        backends=("python",),
        vllm="0.24.0",
    ),
)

CONTAINERS: Mapping[str, Container] = {row.tag: row for row in _ROWS}
"""Containers by tag."""

DEPLOYED = CONTAINERS["26.07-py3"]
"""The container that `deploy/Dockerfile` is built from."""

WHEELS: Mapping[str, str] = {"0.7.0": "2.51.0"}
"""Version of `nvidia-pytriton` to the version of Triton in it."""


def find_container(name: str) -> Container:
    """The container of a tag, with or without the image's name before it.

    The image may be another registry's copy if it is called `tritonserver` there. The contents of
    an image of another name, whatever its tag, are not known.

    Raises:
        OptionError: the table has no such container; the message lists those that it has.
    """
    image, _, tag = name.rpartition(":")
    if tag in CONTAINERS and image.rpartition("/")[2] in ("", IMAGE.rpartition("/")[2]):
        return CONTAINERS[tag]
    hint = did_you_mean(tag, CONTAINERS, cutoff=0.8)
    raise OptionError(
        f"what is in the container {name!r} is not known here.{hint} Known: {', '.join(CONTAINERS)}"
    )
