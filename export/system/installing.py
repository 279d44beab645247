"""How to install what is missing: the one place that writes such a command.

There is no package `iblip` on PyPI, so a bare name would install a stranger's code. What works
depends on how this copy came here: a checkout, a wheel, or a git URL.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from iblip.export.errors import IblipError

CHECKOUT = Path(__file__).resolve().parents[2]
"""The folder that holds `pyproject.toml`, where this code runs from a checkout."""

EXTRAS: Mapping[str, str] = {
    "huggingface_hub": "cpu",
    "onnx": "cpu",
    "onnx_ir": "cpu",
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "onnxscript": "cpu",
    "psutil": "cpu",
    "safetensors": "cpu",
    "sentencepiece": "cpu",
    "tokenizers": "cpu",
    "torch": "cpu",
    "transformers": "cpu",
    "tritonclient": "cpu",
    "aiohttp": "server",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "pytriton": "server",
    "matplotlib": "plot",
    "pyarrow": "parquet",
    "zstandard": "kit",
}
"""Name of an optional module to the extra that brings it."""


class MissingPackageError(IblipError):
    """A package that the command needs is not installed."""


def check_peft() -> None:
    """Raises MissingPackageError without peft, which is run as the reference of adapters."""
    if find_spec("peft") is None:
        raise MissingPackageError(
            "a build with --adapter is compared with transformers and peft, and peft is not"
            " installed. Run `pip install peft`, or build with --no-verify."
        )


def install_command(extra: str = "") -> str:
    """The command that installs this project with an extra, without quotation marks around it.

    Args:
        extra: of `pyproject.toml`; empty is the project alone.
    """
    suffix = f"[{extra}]" if extra else ""
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{CHECKOUT}{suffix}')}"
    return f"pip install {shlex.quote(f'iblip{suffix} @ {_origin()}')}"


def _origin() -> str:
    """The URL that this copy was installed from, or else that of its source code."""
    try:
        distribution = metadata.distribution("iblip")
    except metadata.PackageNotFoundError:
        return "git+URL"
    recorded = distribution.read_text("direct_url.json")  # PEP 610
    if recorded:
        origin = json.loads(recorded)
        if "vcs_info" in origin:
            return f"{origin['vcs_info']['vcs']}+{origin['url']}"
        return str(origin["url"])
    links = (line.partition(", ") for line in distribution.metadata.get_all("Project-URL") or ())
    sources = [url for label, _, url in links if label in ("Source", "Repository")]
    return f"git+{sources[0]}" if sources else "git+URL"


def missing_package(error: ImportError, what: str = "this") -> MissingPackageError | None:
    """An error that says how to install the module; `None` if it is not one of `EXTRAS`.

    Args:
        error: of the import.
        what: needs the module.
    """
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRAS:
        return None
    extra = EXTRAS[module]
    beside = " (with an NVIDIA GPU, the extra `gpu` in place of `cpu`)" if extra == "cpu" else ""
    return MissingPackageError(
        f"{what} needs {module}, which is not installed. Run `{install_command(extra)}`{beside}."
    )
