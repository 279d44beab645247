"""`speed`: milliseconds of each component and of a token, and their share of what the machine can.

Two rates are measured in the same run: copying memory, which bounds a token, and multiplying
matrices, which bounds the vision encoder. Where torch is installed, the products of a component's
weights with as many rows are timed in torch, which is the least that torch would take for it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np

from iblip.engines.cuda.device import BoxCopy, CudaDevice
from iblip.engines.pipeline import Pipeline
from iblip.engines.runners import open_runner
from iblip.engines.types import Runner
from iblip.export.artifact.references import GraphWeights
from iblip.serving.proving.record import Fact
from iblip.serving.proving.requests import request_of
from iblip.serving.proving.subject import NothingToMeasureError, Subject

RUNS, SECONDS = 7, 5.0
"""Runs whose median counts, and the time after which no more are made."""

TOKENS = 32
"""Tokens of an answer whose steps are timed."""

COPIED = 1 << 28
"""Bytes of a copy whose rate is measured: more than any cache holds."""

SIDE = {"cpu": 1024, "cuda": 4096}
"""Rows and columns of the matrices whose product's rate is measured, by torch's device."""

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "lavis": "float16"}
"""A precision's dtype in torch; of others, whose weights torch has no products for, none."""


def measure_speed(subject: Subject) -> Iterator[Fact]:
    """Rates of the machine, then times of the components."""
    bandwidth = _copy_rate(subject)
    yield Fact(name="copying memory, GB/s read and written", value=bandwidth / 1e9)
    torch = _torch() if subject.torch else None
    rate = None if torch is None else _product_rate(subject, torch)
    if rate is not None:
        yield Fact(name="products of matrices in torch, TFLOP/s", value=rate / 1e12)
    for component in ("vision_encoder", "qformer"):
        yield from _time_component(subject, component, rate, torch)
    yield from _time_tokens(subject, bandwidth, torch)


def _time_component(
    subject: Subject, component: str, rate: float | None, torch: Any
) -> Iterator[Fact]:
    weights = _weights(subject, f"{component}/model")
    with open_runner(subject.directory, subject.manifest, component) as runner:
        for batch in dict.fromkeys((1, subject.manifest.limits.max_batch)):
            feed = _made_up(runner, batch)
            started = _milliseconds(lambda: runner.infer(feed), runs=1)  # noqa: B023
            spent = _milliseconds(lambda: runner.infer(feed))  # noqa: B023
            title = f"{component}, batch {batch}"
            yield Fact(name=f"{title}: the first run, ms", value=started)
            yield Fact(name=f"{title}: ms", value=spent)
            if weights is None:
                continue
            output = runner.contract.outputs[0].axes
            rows = batch * int(output[1] if isinstance(output[1], int) else 1)
            if rate is not None and component == "vision_encoder":
                share = 2 * rows * weights.factors / (spent / 1e3) / rate
                yield Fact(name=f"{title}: share of the rate of products", value=share)
            yield from _time_torch(subject, torch, component, title, weights, rows)


def _time_tokens(subject: Subject, bandwidth: float, torch: Any) -> Iterator[Fact]:
    weights = _weights(subject, "language_model/batched_decoder")
    sizes = tuple(dict.fromkeys((1, subject.manifest.limits.slots)))
    with subject.open() as pipeline:
        _answer_all(subject, pipeline, 1)  # kernels are chosen, and memory is taken
        for rows in sizes:
            prefill, step = _answer_all(subject, pipeline, rows)
            yield Fact(name=f"{_of_rows(rows)}: reading the prompt, ms", value=prefill)
            yield Fact(name=f"{_of_rows(rows)}: a token, ms", value=step)
            if weights is not None:
                # A copy reads and writes; a step only reads.
                share = weights.bytes / (step / 1e3) / bandwidth
                name = f"{_of_rows(rows)}: weights read, share of the copying rate"
                yield Fact(name=name, value=share)
    for rows in sizes:  # the build has left its memory to torch
        yield from _time_torch(subject, torch, "language_model", _of_rows(rows), weights, rows)


def _of_rows(rows: int) -> str:
    return f"language_model, {rows} {'row' if rows == 1 else 'rows'}"


def _answer_all(subject: Subject, pipeline: Pipeline, rows: int) -> tuple[float, float]:
    """Milliseconds of the prompt and of a token, medians of `rows` answers at once."""
    requests = [request_of(subject, index, tokens=TOKENS, exactly=True) for index in range(rows)]
    answers = [g.result() for g in [request.submit(pipeline) for request in requests]]
    prefills = [answer.timing.prefill_s * 1e3 for answer in answers]
    steps = [
        answer.timing.decode_s * 1e3 / max(answer.completion_tokens - 1, 1) for answer in answers
    ]
    return statistics.median(prefills), statistics.median(steps)


def _weights(subject: Subject, title: str) -> GraphWeights | None:
    try:
        return subject.references.weights.get(title)
    except NothingToMeasureError:  # a build of a version that kept none
        return None


def _made_up(runner: Runner, batch: int) -> dict[str, Any]:
    """A feed of a component: any numbers take as long as others."""
    sizes = {"batch": batch, "instruction": 8}
    random = np.random.default_rng(0)
    feed = {}
    for spec in runner.contract.inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        if spec.dtype == "uint8":
            feed[spec.name] = random.integers(0, 256, shape, dtype=np.uint8)
        elif spec.dtype.startswith("int"):
            feed[spec.name] = np.ones(shape, spec.numpy_dtype)
        else:
            feed[spec.name] = random.standard_normal(shape).astype(spec.numpy_dtype)
    return feed


def _milliseconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """The median time of a few runs."""
    times: list[float] = []
    end = time.monotonic() + SECONDS
    while len(times) < runs and (not times or time.monotonic() < end):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def _copy_rate(subject: Subject) -> float:
    """Bytes read and written a second, by the device that runs the language model."""
    if not subject.on_gpu:
        source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
        return 2 * COPIED / (_milliseconds(lambda: np.copyto(target, source)) / 1e3)
    device = CudaDevice()
    stream = device.open_stream()
    source_, target_ = device.allocate(COPIED), device.allocate(COPIED)
    box = BoxCopy(target=target_, source=source_, width=COPIED)

    def copy() -> None:
        for _ in range(4):
            device.copy_boxes([box], pitch=COPIED, rows=1, layer=COPIED, layers=1, stream=stream)
        device.synchronize(stream)

    copy()
    spent = _milliseconds(copy)
    for address in (source_, target_):
        device.free(address)
    device.close_stream(stream)
    return 4 * 2 * COPIED / (spent / 1e3)


def _torch() -> Any:
    """The module, where it is installed."""
    if find_spec("torch") is None:
        return None
    import torch

    return torch


def _torch_device(subject: Subject, torch: Any) -> str | None:
    """Where torch runs beside the build; `None` if it cannot run on the build's GPU."""
    if not subject.on_gpu:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else None


def _product_rate(subject: Subject, torch: Any) -> float | None:
    """Operations a second of a product of large matrices, in the vision encoder's precision."""
    device = _torch_device(subject, torch)
    word = DTYPES.get(subject.manifest.precision["vision_encoder"])
    if device is None or word is None:
        return None
    side = SIDE[device]
    spent = _torch_time(torch, device, getattr(torch, word), [(side, side, 1)], side)
    return 2 * side**3 / (spent / 1e3)


def _time_torch(
    subject: Subject,
    torch: Any,
    component: str,
    title: str,
    weights: GraphWeights | None,
    rows: int,
) -> Iterator[Fact]:
    """Milliseconds of the products of a graph's weights with so many rows, in torch."""
    word = DTYPES.get(subject.manifest.precision[component])
    device = None if torch is None else _torch_device(subject, torch)
    if device is None or word is None or weights is None or not weights.products:
        return
    name = f"{title}: torch's products alone, ms"
    try:
        spent = _torch_time(torch, device, getattr(torch, word), weights.products, rows)
        yield Fact(name=name, value=spent)
    except RuntimeError as error:  # such as too little memory beside what others use
        yield Fact(name=name, value=f"not measured: {error}")


def _torch_time(torch: Any, device: str, dtype: Any, products: Any, rows: int) -> float:
    pairs = [
        (
            torch.ones(rows, inner, dtype=dtype, device=device),
            # A matrix of its own for each product: caches are not to hold them between.
            [torch.ones(inner, outer, dtype=dtype, device=device) for _ in range(count)],
        )
        for inner, outer, count in products
    ]

    def work() -> None:
        with torch.no_grad():
            for activations, matrices in pairs:
                for matrix in matrices:
                    activations @ matrix
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    return _milliseconds(work)
