"""The requests of a bench as files for other load generators.

`perf_analyzer.json` is what `perf_analyzer --input-data` reads: a request's tensors, for the models
that take encoded images. Its options cannot differ from request to request: `--request-parameter`
gives some to all. `aiperf.jsonl` is AIPerf's `single_turn`, for OpenAI's API.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from iblip.export.errors import OptionError
from iblip.export.system.files import write_whole
from iblip.serving.bench.requests import Request
from iblip.serving.wire.names import IMAGE, MODEL, PROMPT

PERF_ANALYZER = "perf_analyzer.json"
AIPERF = "aiperf.jsonl"
FILES = (PERF_ANALYZER, AIPERF)

COMMANDS = f"""\
perf_analyzer -m {MODEL} -u HOST:GRPC_PORT -i grpc --streaming --async \\
    --input-data {{directory}}/{PERF_ANALYZER} --request-rate-range 4
aiperf profile --model MODEL --url http://HOST:OPENAI_PORT --endpoint-type chat --streaming \\
    --custom-dataset-type single_turn --input-file {{directory}}/{AIPERF} --request-rate 4"""
"""How both are called."""


def check_directory(directory: Path) -> None:
    """Raises `OptionError` where a directory is not empty."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise OptionError(f"{directory} is not an empty directory; give another, or remove it")


def write_inputs(directory: Path, requests: Sequence[Request]) -> None:
    """Writes both files.

    Args:
        directory: is made, or empty.
        requests: in the order in which they are asked.

    Raises:
        OptionError: the directory is not empty, or cannot be made.
    """
    check_directory(directory)
    images = [[_png(image) for image in request.pixels] for request in requests]
    pairs = list(zip(requests, images, strict=True))
    document = {"data": [_tensors(request, pngs) for request, pngs in pairs]}
    lines = [json.dumps(_turn(request, pngs)) + "\n" for request, pngs in pairs]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{directory} cannot be made: {error.strerror}") from error
    write_whole(directory / PERF_ANALYZER, json.dumps(document).encode())
    write_whole(directory / AIPERF, "".join(lines).encode())


def _tensors(request: Request, pngs: Sequence[str]) -> dict[str, Any]:
    return {
        IMAGE: {"content": list(pngs), "shape": [len(pngs)]},
        PROMPT: {"content": [request.prompt], "shape": [1]},
    }


def _turn(request: Request, pngs: Sequence[str]) -> dict[str, Any]:
    options = request.options.to_mapping()
    length = options.pop("max_new_tokens", None)
    return {
        "text": request.prompt,
        "images": [f"data:image/png;base64,{png}" for png in pngs],
        **({} if length is None else {"output_length": length}),
        **({"extra": options} if options else {}),
    }


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """An image in base64, from uint8 `[height, width, 3]`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
