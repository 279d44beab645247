"""`kernels`: which kernels ONNX Runtime ran for attention, as it tells itself."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iblip.serving.proving.record import Fact
from iblip.serving.proving.requests import request_of
from iblip.serving.proving.subject import NothingToMeasureError, Subject

VARIABLE = "ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO"
"""Has the CUDA provider print the kernel of each attention on standard output. Source:
microsoft/onnxruntime, onnxruntime/contrib_ops/cpu/bert/attention_common.h."""

LINE = re.compile(r"Operator=(\S+).*?SdpaKernel=(\S+)")

REQUESTS = 2

CUDA = "onnxruntime-cuda"


def find_kernels(subject: Subject) -> Iterator[Fact]:
    """Counts the kernels of attention in a few answers."""
    if not subject.on_gpu:
        raise NothingToMeasureError("ONNX Runtime's CPU provider has one kernel for each attention")
    if CUDA not in subject.engines.values():
        raise NothingToMeasureError("only ONNX Runtime's CUDA provider tells its kernels")
    os.environ[VARIABLE] = "1"  # read when a session is opened
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said"
        with _output_to(said), subject.open() as pipeline:
            for index in range(REQUESTS):
                request_of(subject, index, tokens=8).submit(pipeline).result()
        lines = said.read_text(encoding="utf-8", errors="replace")
    kernels = Counter(LINE.findall(lines))
    if not kernels:
        yield Fact(name="kernels of attention", value="ONNX Runtime told none")
    for (operator, kernel), count in sorted(kernels.items()):
        yield Fact(name=f"{operator} by {kernel}, runs", value=count)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Sends what this process and its libraries write to standard output into a file."""
    kept = os.dup(1)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
