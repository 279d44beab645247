"""The engine inspector's calls: on the real library as far as it goes without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from iblip.engines.hardware.nvidia import has_nvidia_gpu
from iblip.engines.tensorrt import inspection
from iblip.engines.tensorrt.inspection import check_engine, engine_information, layers_of_engine
from iblip.engines.tensorrt.libraries import Library, find_library
from iblip.export.artifact.verified_graph import OnnxGraph
from iblip.export.errors import EngineError

pytest.importorskip("tensorrt_rtx_bindings")


@pytest.fixture(scope="module")
def library() -> Library:
    return find_library("tensorrt-rtx")


def test_the_real_library_has_the_calls(library: Library) -> None:
    assert hasattr(library.module.ICudaEngine, "create_engine_inspector")
    assert hasattr(library.module.EngineInspector, "get_engine_information")
    assert "JSON" in library.module.LayerInformationFormat.__members__


@pytest.mark.skipif(has_nvidia_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_library_says_why(library: Library, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    with pytest.raises(EngineError, match="there is no plan"):
        engine_information(plan, (), library)
    plan.write_bytes(b"no plan at all")
    with pytest.raises(EngineError, match="tensorrt-rtx cannot load the plan"):
        engine_information(plan, (), library)


@pytest.mark.parametrize(("text", "found"), [('{"Layers": []}', {"Layers": []}), ("Layer 1", None)])
def test_its_json_is_read(
    monkeypatch: pytest.MonkeyPatch,
    library: Library,
    tmp_path: Path,
    text: str,
    found: dict | None,
) -> None:
    """With an engine in place of one that a GPU would have loaded."""
    said = SimpleNamespace(get_engine_information=lambda form: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: said)
    monkeypatch.setattr(inspection, "open_plan", lambda *_: SimpleNamespace(engine=engine))
    if found is None:
        with pytest.raises(EngineError, match=r"returned no JSON for .*: 'Layer 1'"):
            engine_information(tmp_path / "model.plan", (), library)
    else:
        assert engine_information(tmp_path / "model.plan", (), library) == found


def _layer(name: str, given: str, made: str) -> dict:
    """As NVIDIA's documentation has it; no GPU has made one here."""
    return {
        "Name": name,
        "Inputs": [{"Name": "x", "Format/Datatype": given}],
        "Outputs": [{"Name": "y", "Format/Datatype": made}],
    }


def test_an_engine_without_a_layer_in_the_precision_asked_for_is_refused(
    vision_graph: Callable[[str], OnnxGraph],
) -> None:
    graph = vision_graph("float16")
    first = _layer("Conv_0", "Row major linear UInt8", "Row major linear FP16 format")
    fused = _layer("__myl_Fc_0", "Half", "Float")
    information = {"Layers": [first, fused, "a name alone"]}
    assert layers_of_engine(information) == [
        ("Conv_0", frozenset({"HALF"})),
        ("__myl_Fc_0", frozenset({"HALF", "FLOAT"})),
    ]
    assert check_engine(information, graph) == {"HALF": 2, "FLOAT": 1}
    with pytest.raises(EngineError, match="none of its 1 layers has HALF: __myl_Fc_1"):
        check_engine({"Layers": [_layer("__myl_Fc_1", "Float", "FP32")]}, graph)
    assert check_engine({"Layers": ["a name alone"]}, graph) == {}
