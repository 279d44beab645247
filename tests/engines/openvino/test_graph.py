"""Language models on OpenVINO in few bits, against ONNX Runtime on the same graphs."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iblip.engines.language_model.onnx.opening import open_model
from iblip.engines.language_model.opening import EngineLimits, open_engine
from iblip.engines.language_model.options import GenerationOptions
from iblip.engines.language_model.types import GenerationRequest
from iblip.engines.openvino.graph import OpenVinoGraph
from iblip.engines.types import PromptIds
from iblip.export.artifact.manifest import Manifest
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import EngineError
from iblip.serving.builder.build import build
from iblip.serving.builder.options import BuildOptions, EngineOptions
from tests.fixtures.sharing import MakeOnce

pytest.importorskip("openvino")

ANSWER = (30, 51, 9, 9, 20)
BUILDS = [("llama", "int4"), ("t5", "int4"), ("opt", "int8"), ("gpt-neox", "int4")]


@pytest.fixture(params=BUILDS, ids="-".join)
def directory(
    request: pytest.FixtureRequest,
    random_checkpoint: Callable[[str], Path],
    make_once: MakeOnce,
) -> Path:
    kind, precision = request.param

    def write(directory: Path) -> None:
        options = BuildOptions(
            source=ModelSource(model=str(random_checkpoint(kind))),
            output=directory,
            precision=f"language_model={precision}",
            engines=EngineOptions(llm_engine="openvino"),
            verification=None,
        )
        build(options)

    return make_once(f"random-builds/openvino-{kind}-{precision}", write)


def visual(manifest: Manifest, seed: int) -> np.ndarray:
    facts = manifest.language_model
    shape = 1, facts.num_query_tokens, facts.hidden_size
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def logits(directory: Path, manifest: Manifest) -> np.ndarray:
    """After each token of an answer, `[tokens * vocab]`."""
    model = open_model(directory, manifest, threads=1)
    slot = model.acquire()
    prompt = model.read(visual(manifest, 0), PromptIds((1, 40, 27, 12, 39, 5)))
    while prompt.done < prompt.positions:
        model.prefill({slot: prompt}, 4)
    steps = [model.step({slot: token})[0].copy() for token in ANSWER]
    model.close()
    return np.concatenate(steps).astype(np.float64)


def test_logits_are_those_of_onnx_runtime(directory: Path) -> None:
    manifest = Manifest.read(directory)
    record = manifest.components["language_model"]
    assert record.engine.kind == "openvino"
    other = replace(record, engine=replace(record.engine, kind="onnxruntime"))
    on_onnxruntime = replace(manifest, components={**manifest.components, "language_model": other})
    found, wanted = logits(directory, manifest), logits(directory, on_onnxruntime)
    # T5's is 0.9989 on a processor with AVX2 and without AVX-512.
    assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.998


def test_a_step_leaves_no_operator_behind(directory: Path) -> None:
    """OpenVINO never frees one of Python's, nor the tensors that it reads."""

    def operators() -> int:
        return sum(type(one).__name__ == "Attention" for one in gc.get_objects())

    model = open_model(directory, Manifest.read(directory), threads=1)
    slot = model.acquire()
    prompt = model.read(visual(Manifest.read(directory), 0), PromptIds((1, 40, 27)))
    while prompt.done < prompt.positions:
        model.prefill({slot: prompt}, 4)
    model.step({slot: ANSWER[0]})
    before = operators()
    for token in ANSWER:
        model.step({slot: token})
    model.close()
    assert before > 0
    assert operators() <= before


def test_a_closed_engine_leaves_no_graph_behind(directory: Path) -> None:
    from iblip.engines.openvino.attention import Attention, AttentionRunner

    def held() -> list[object]:
        gc.collect()
        objects = gc.get_objects()
        runners = [one for one in objects if isinstance(one, AttentionRunner)]
        return [
            *(one for one in objects if isinstance(one, Attention) and one.get_input_size()),
            *(runner for runner in runners if runner.bound or runner.layers or runner.weights),
        ]

    before = held()  # by other tests of this process
    logits(directory, Manifest.read(directory))
    assert [one for one in held() if not any(one is other for other in before)] == []


def test_an_answer_is_the_same_alone_and_in_a_crowd(directory: Path) -> None:
    manifest = Manifest.read(directory)
    requests = [
        GenerationRequest(
            prompt=["What colour is the 3?", "It's red", "Describe the image."][i % 3],
            visual_prompt=visual(manifest, i),
            options=GenerationOptions(max_new_tokens=6 + i % 7, min_new_tokens=6),
        )
        for i in range(16)
    ]
    limits = EngineLimits(slots=16)
    with contextlib.closing(open_engine(directory, manifest, threads=1, limits=limits)) as engine:
        alone = [engine.submit(request).result().token_ids for request in requests]
        crowd = [engine.submit(request) for request in requests]
        assert [generation.result().token_ids for generation in crowd] == alone
    assert len(set(alone)) > 8


def test_a_damaged_graph_is_refused(random_build: Callable[[str], Path], tmp_path: Path) -> None:
    graphs = Manifest.read(random_build("llama")).components["language_model"].graphs
    contract = graphs["batched_decoder"].contract
    with pytest.raises(EngineError, match=r"there is no graph .*build it again"):
        OpenVinoGraph(tmp_path / "gone.onnx", contract)
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a\x12")
    with pytest.raises(EngineError, match=r"OpenVINO cannot load .*cut\.onnx"):
        OpenVinoGraph(tmp_path / "cut.onnx", contract)


CLOSED_AND_INTERRUPTED = """
import gc, signal, sys
from pathlib import Path
from iblip.engines.language_model.onnx.opening import open_model
from iblip.export.artifact.manifest import Manifest
directory = Path(sys.argv[1])
models = [open_model(directory, Manifest.read(directory), slots=1) for _ in range(3)]
while models:
    del models[0]
    gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_models_were_closed_in_the_order_of_opening(directory: Path) -> None:
    command = [sys.executable, "-c", CLOSED_AND_INTERRUPTED, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
