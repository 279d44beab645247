"""Plans of every graph of a build, by the real TensorRT-RTX parser and builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from iblip.engines.cache.store import EngineCache
from iblip.engines.plans import Outcome, PlanBuild, plans_of_build
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.options import PlanOptions
from iblip.engines.tensorrt.profile_sizes import ProfileOptions
from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import OptionError
from iblip.export.progress import Silent

pytest.importorskip("tensorrt_rtx_bindings")

DECODERS = {
    "t5": ("embed_tokens", "encoder", "decoder"),
    "llama": ("embed_tokens", "decoder"),
    "opt": ("embed_tokens", "decoder"),
}


def _plans(build: Path, output: Path, *graphs: str, cache: Path | None = None) -> list[Outcome]:
    how = PlanBuild(
        library=find_library("tensorrt-rtx"),
        options=PlanOptions(targets=("sm89",)),
        sizes=ProfileOptions(max={"batch": 8, "instruction": 40}, opt={"batch": 1}),
        cache=None if cache is None else EngineCache(cache),
    )
    return list(plans_of_build(build, Manifest.read(build), output, how, Silent(), graphs))


@pytest.mark.parametrize(
    ("kind", "precision", "dtype"),
    [("t5", "fp16", "HALF"), ("llama", "fp16", "HALF"), ("opt", "fp32", "FLOAT")],
)
def test_every_graph_becomes_a_plan(
    random_build: Callable[..., Path], tmp_path: Path, kind: str, precision: str, dtype: str
) -> None:
    found = _plans(random_build(kind, precision), tmp_path)
    decoders = [f"language_model/{name}" for name in DECODERS[kind]]
    assert [one.title for one in found] == ["vision_encoder/model", "qformer/model", *decoders]
    assert [one.reason for one in found] == [None] * len(found)
    for one in found:
        assert one.plan is not None
        assert one.plan.path == tmp_path / f"{one.title}.plan"
        assert one.plan.path.stat().st_size == one.plan.details["bytes"]
        assert dtype in one.plan.details["all_layers"]
        assert one.plan.details["unverified"] == "a test"
    assert found[0].to_json()["details"]["profiles"] == [{"batch": [1, 1, 8]}]
    prefill, decode = found[-1].to_json()["details"]["profiles"]
    assert (prefill["past"], decode["sequence"]) == ([0, 0, 0], [1, 1, 1])


def test_what_cannot_be_read_has_the_parsers_reason_and_the_others_are_built(
    random_build: Callable[..., Path], tmp_path: Path
) -> None:
    graphs = ("language_model/batched_decoder", "language_model/embed_tokens")
    failed, built = _plans(random_build("llama", "fp16"), tmp_path, *graphs, cache=tmp_path / "c")
    assert failed.plan is None
    assert "tensorrt-rtx cannot read" in (failed.reason or "")
    assert "GroupQueryAttention" in (failed.reason or "")
    assert failed.to_json()["reason"] == failed.reason
    assert built.plan is not None
    assert built.plan.details["cached"] is False


def test_a_graph_that_is_not_there_is_refused_before_any_is_built(
    random_build: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"no such graph\. Did you mean 'language_model/decoder'"):
        _plans(random_build("llama", "fp16"), tmp_path, "qformer/model", "language_model/decodr")
    assert list(tmp_path.iterdir()) == []
