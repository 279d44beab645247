"""Weights that other libraries have quantised and saved are dequantised bit for bit as by them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from iblip.export.checkpoint.directory import tensors_from_directory
from iblip.export.dequantisation import dequantised
from iblip.export.dequantisation.methods import methods_of
from iblip.export.errors import CheckpointError
from iblip.export.weights.weight import SourceTensor
from tests.export.dequantisation.conftest import FILES

METHODS = {
    "bitsandbytes-nf4-double": "7 weights are quantised (bitsandbytes, nf4)",
    "bitsandbytes-nf4-stored-as-bfloat16": "7 weights are quantised (bitsandbytes, nf4)",
    "bitsandbytes-fp4": "7 weights are quantised (bitsandbytes, fp4)",
    "bitsandbytes-int8": "6 weights are quantised (bitsandbytes, 8 bits)",
    "gptq-2": "7 weights are quantised (GPTQ, 2 bits)",
    "gptq-3": "7 weights are quantised (GPTQ, 3 bits)",
    "gptq-4": "7 weights are quantised (GPTQ, 4 bits)",
    "gptq-8": "7 weights are quantised (GPTQ, 8 bits)",
    "gptq_v2-3": "7 weights are quantised (GPTQ, 3 bits)",
    "gptq_v2-4": "7 weights are quantised (GPTQ, 4 bits)",
    "awq": "7 weights are quantised (AWQ, 4 bits)",
}

Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("block", [2**20, 70], ids=["whole", "rows"])
@pytest.mark.parametrize("name", METHODS)
def test_values_are_the_librarys_own(
    name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dequantised, "BLOCK", block)
    tensors = tensors_from_directory(FILES / name)
    assert methods_of(tensors.values()) == METHODS[name]
    expected = json.loads((FILES / name / "digests.json").read_text())
    for weight, (dtype, shape, digest) in expected.items():
        tensor = tensors[weight]
        pieces = list(tensor.pieces())
        assert (len(pieces) > 1) is (block == 70)
        raw = b"".join(piece.tobytes() for piece in pieces)
        assert hashlib.sha256(raw).hexdigest() == digest, weight
        assert tensor.read().tobytes() == raw
        assert (tensor.dtype, list(tensor.shape)) == (dtype, shape)
        assert tensor.read().dtype.name == dtype
    others = tensors.keys() - expected.keys()
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= others
    assert all(isinstance(tensors[other], SourceTensor) for other in others)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    """`copy("awq", settings, change)`: a folder of `FILES` with other settings and tensors."""

    def copied(
        name: str, settings: Any = None, change: Callable[[Any], None] | None = None
    ) -> Path:
        directory = Path(shutil.copytree(FILES / name, tmp_path / "copy", dirs_exist_ok=True))
        config = json.loads((directory / "config.json").read_text())
        config["quantization_config"] |= settings or {}
        (directory / "config.json").write_text(json.dumps(config))
        if change is not None:
            tensors = load_file(directory / "model.safetensors")
            change(tensors)
            save_file(tensors, directory / "model.safetensors")
        return directory

    return copied


REFUSED = {
    "fp8": ("gptq-4", {"quant_method": "fp8"}, "quantised by 'fp8', which is not supported"),
    "hqq": ("awq", {"quant_method": "hqq"}, r"model\.dequantize\(\)\.save_pretrained"),
    "compressed-tensors": ("awq", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "Marlin": ("gptq-4", {"checkpoint_format": "marlin"}, "in the format 'marlin'"),
    "Marlin's flag": ("gptq-4", {"is_marlin_format": True}, "gptq and gptq_v2 are"),
    "planar": ("gptq-4", {"checkpoint_format": "gptq_p"}, "in the format 'gptq_p'"),
    "GEMV": ("awq", {"version": "GEMV"}, "4 bits in the layout 'gemv', which is not supported"),
    "AWQ of 3 bits": ("awq", {"bits": 3}, "to 3 bits"),
}


@pytest.mark.parametrize(("name", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_other_methods_are_refused_by_name(
    copy: Callable[..., Path], name: str, settings: Any, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        tensors_from_directory(copy(name, settings))
    assert "Give --model" in str(caught.value) or "Take the model" in str(caught.value)


def _state(tensors: Any, text: bytes) -> None:
    name = f"{Q}.weight.quant_state.bitsandbytes__nf4"
    tensors[name] = torch.tensor(list(text), dtype=torch.uint8)


DAMAGED: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "no magnitudes": (
        "bitsandbytes-nf4-double",
        lambda tensors: tensors.pop(f"{Q}.weight.absmax"),
        "q_proj.weight.absmax is missing",
    ),
    "no JSON": (
        "bitsandbytes-nf4-double",
        lambda tensors: _state(tensors, b"{"),
        "bitsandbytes__nf4 is not JSON",
    ),
    "another shape": (
        "bitsandbytes-nf4-double",
        lambda tensors: _state(tensors, b'{"shape": [8, 8], "dtype": "float16", "blocksize": 64}'),
        r"q_proj.weight has shape \[512\], expected \[32\]",
    ),
    "no shape": (
        "bitsandbytes-nf4-double",
        lambda tensors: _state(tensors, b"{}"),
        "has shape None; expected numbers above 0",
    ),
    "the order of a GPU": (
        "bitsandbytes-int8",
        lambda tensors: tensors[f"{Q}.weight_format"].fill_(2),
        "q_proj.weight_format is 2: the rows of",
    ),
    "short scales": (
        "bitsandbytes-int8",
        lambda tensors: tensors.update({f"{Q}.SCB": torch.ones(3)}),
        r"q_proj.SCB has shape \[3\], expected \[32\]",
    ),
    "no zero points": ("gptq-4", lambda tensors: tensors.pop(f"{Q}.qzeros"), "qzeros is missing"),
    "gaps": (
        "gptq-4",
        lambda tensors: tensors.update({f"{Q}.g_idx": torch.zeros(31, dtype=torch.int32)}),
        "packed without gaps",
    ),
    "floats beside integers": (
        "gptq-4",
        lambda tensors: tensors.update({f"{Q}.weight": torch.ones(32, 32)}),
        "which of the two the model is, the file does not say",
    ),
    "short nested magnitudes": (
        "bitsandbytes-nf4-double",
        lambda tensors: tensors.update({f"{Q}.weight.nested_absmax": torch.ones(2)}),
        r"nested_absmax has shape \[2\], expected \[1\]",
    ),
    "a dtype that is not read": (
        "bitsandbytes-fp4",
        lambda tensors: tensors.update({f"{Q}.weight.absmax": torch.ones(16).double()}),
        "q_proj.weight.absmax has dtype F64",
    ),
    "outputs": (
        "awq",
        lambda tensors: tensors.update({f"{Q}.scales": torch.ones(2, 24).half()}),
        r"qweight has shape \[32, 4\], expected \[32, 3\]",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), DAMAGED.values(), ids=DAMAGED)
def test_tensors_that_do_not_fit_are_named(
    copy: Callable[..., Path], name: str, change: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        tensors_from_directory(copy(name, None, change))


def test_a_group_that_there_is_not_is_refused_when_it_is_read(copy: Callable[..., Path]) -> None:
    directory = copy("gptq-4", None, lambda tensors: tensors[f"{Q}.g_idx"].fill_(2))
    with pytest.raises(CheckpointError, match=r"q_proj.g_idx names group 2, and .* has 2"):
        tensors_from_directory(directory)[f"{Q}.weight"].read()


def test_groups_in_order_need_no_index(copy: Callable[..., Path]) -> None:
    expected = tensors_from_directory(FILES / "gptq-3")[f"{Q}.weight"].read()
    directory = copy("gptq-3", None, lambda tensors: tensors.pop(f"{Q}.g_idx"))
    assert (tensors_from_directory(directory)[f"{Q}.weight"].read() == expected).all()


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("gptq-4", "quantize_config.json", {"bits": 4, "group_size": 16, "desc_act": False}),
        ("awq", "quant_config.json", {"zero_point": True, "w_bit": 4, "version": "GEMM"}),
        ("bitsandbytes-int8", None, {}),
    ],
)
def test_settings_may_lie_beside_the_config(
    copy: Callable[..., Path], name: str, file: str | None, settings: Any
) -> None:
    directory = copy(name)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    if file is not None:
        with pytest.raises(CheckpointError, match="does not say how it was quantised"):
            tensors_from_directory(directory)
        (directory / file).write_text(json.dumps(settings))
    assert tensors_from_directory(directory).keys() == tensors_from_directory(FILES / name).keys()
    assert methods_of(tensors_from_directory(directory).values()) == METHODS[name]
