"""References on disk: what is written is read, the same values are the same bytes, changes are
named."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from iblip.export.artifact.contract import Contract, TensorSpec
from iblip.export.artifact.manifest import ComponentRecord, EngineRecord, GraphRecord, Manifest
from iblip.export.artifact.references import (
    FACTS,
    TENSORS,
    AnswerReference,
    GraphCase,
    GraphWeights,
    References,
    Sample,
    check_references,
)
from iblip.export.errors import BuildDirectoryError

SPEC = TensorSpec(name="embeds", dtype="bfloat16", axes=("batch", 4))
OUT = TensorSpec(name="logits", dtype="float32", axes=("batch", 4))


@pytest.fixture
def references():
    feed = {"embeds": np.arange(8).reshape(2, 4).astype(ml_dtypes.bfloat16)}
    expected = np.arange(8, dtype=np.float32).reshape(2, 4)
    return References(
        skipped=None,
        weights={"language_model/decoder": GraphWeights(bytes=40, products=((2, 5, 3),))},
        cases=[
            GraphCase(
                graph="language_model/decoder",
                name="batch 2",
                feed=feed,
                expected={"logits": Sample.of(expected, np.array([[True], [False]]), 3)},
            )
        ],
        omitted={"language_model/encoder": "too large"},
        pixels=np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3),
        answers=[
            AnswerReference(
                way="text",
                name="one",
                prompt="What?",
                images=(0,),
                options={"logprobs": 2},
                token_ids=(5, 6),
                text="a cat",
                first=((5, -0.25), (7, -1.5)),
            )
        ],
    )


@pytest.fixture
def manifest():
    graph = GraphRecord(
        path="graphs/language_model/decoder.onnx",
        weights=(),
        digest="0" * 64,
        contract=Contract(inputs=(SPEC,), outputs=(OUT,)),
    )
    record = ComponentRecord(
        precision="bf16",
        graphs={"decoder": graph},
        engine=EngineRecord(kind="onnxruntime", files={}),
    )
    empty = dict.fromkeys(field for field in Manifest.__dataclass_fields__)
    return Manifest(**{**empty, "components": {"language_model": record}, "references": {}})


def test_what_is_written_is_read(references, manifest, tmp_path):
    manifest = replace(manifest, references=references.write(tmp_path))
    read = References.read(tmp_path, manifest)
    assert read.weights == references.weights
    assert read.weights["language_model/decoder"].factors == 30
    assert read.omitted == references.omitted
    assert read.answers == references.answers
    np.testing.assert_array_equal(read.pixels, references.pixels)
    (case,), (written,) = read.cases, references.cases
    assert case.feed["embeds"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(case.feed["embeds"], written.feed["embeds"])
    sample = case.expected["logits"]
    assert sample.shape == (2, 4)
    np.testing.assert_array_equal(sample.at, written.expected["logits"].at)
    np.testing.assert_array_equal(sample.values, written.expected["logits"].values)


def test_the_same_values_are_the_same_bytes(references, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert references.write(tmp_path / "a") == references.write(tmp_path / "b")


def test_a_sample_is_of_real_values_alone():
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    real = np.array([[True], [False], [True]])
    sample = Sample.of(expected, real, 5)
    assert len(sample.at) == 5
    assert set(sample.values) <= {0, 1, 2, 3, 8, 9, 10, 11}
    np.testing.assert_array_equal(expected.ravel()[sample.at], sample.values)
    assert len(Sample.of(expected, None, 100).at) == 12


def test_a_build_of_a_version_that_kept_none_has_none(manifest, tmp_path):
    assert References.read(tmp_path, manifest) is None


def test_a_file_that_was_changed_or_is_gone_is_named(references, manifest, tmp_path):
    manifest = replace(manifest, references=references.write(tmp_path))
    check_references(tmp_path, manifest)
    (tmp_path / FACTS).write_text("{}")
    (tmp_path / TENSORS).unlink()
    with pytest.raises(BuildDirectoryError) as caught:
        References.read(tmp_path, manifest)
    assert f"{FACTS} has digest" in str(caught.value)
    assert f"{TENSORS} is missing" in str(caught.value)
