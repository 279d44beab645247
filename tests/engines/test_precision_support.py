"""What an engine cannot run is refused, with the reason and a way that there is."""

import pytest
from click.testing import CliRunner

from iblip.engines.hardware.nvidia import Driver, Gpu
from iblip.engines.kinds import KINDS
from iblip.engines.openvino import graph
from iblip.engines.precision_support import (
    REFUSALS,
    REMARKS,
    check_precision,
    remark_on_precision,
)
from iblip.export.errors import OptionError
from iblip.export.precision import PrecisionPolicy
from iblip.export.quantisation.options import QuantisationOptions, quantisations
from iblip.serving.builder.options import LLM_ENGINES
from iblip.serving.cli import export


def check(engine, component, precision, targets=(), **options):
    """Refuses, or returns what there is to say."""
    policy = PrecisionPolicy.parse(precision)
    quantisation = quantisations(policy, QuantisationOptions(**options)).get(component)
    word = policy.word(component)
    check_precision(engine, component, word, quantisation, targets)
    return remark_on_precision(engine, component, word, quantisation)


def test_only_engines_that_there_are_refuse():
    assert {engine for engine, *_ in {*REFUSALS, *REMARKS}} <= {*KINDS, *LLM_ENGINES}


def test_floats_of_eight_bits_want_a_gpu_that_has_them():
    message = r"vision_encoder=fp8 is not for tensorrt-rtx: sm80, SM86 cannot multiply .* sm89 and"
    with pytest.raises(OptionError, match=message):
        check("tensorrt-rtx", "vision_encoder", "fp8", ("sm80", "SM86", "sm89"))
    assert check("tensorrt-rtx", "vision_encoder", "fp8", ("sm89", "sm120")) is None
    assert check("tensorrt-rtx", "vision_encoder", "int8-fp16", ("sm80",)) is None


def machine(monkeypatch, *capabilities):
    """Has the driver say that these are the machine's GPUs."""
    gpus = [Gpu(name=f"GPU of {one}", memory=2**34, capability=one) for one in capabilities]
    driver = Driver(version="580.95.05", cuda="13.0", gpus=tuple(gpus))
    monkeypatch.setattr("iblip.engines.precision_support.find_driver", lambda: driver)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_plan_for_this_machine_wants_it_of_the_first_gpu(engine, monkeypatch):
    machine(monkeypatch, "sm86", "sm120")
    message = rf"qformer=fp8 is not for {engine}: sm86 cannot multiply .* sm89 and later can\. That"
    with pytest.raises(OptionError, match=message):
        check(engine, "qformer", "fp8")
    assert check(engine, "qformer", "fp8", ("sm89",)) is None
    assert check(engine, "qformer", "int8-fp16") is None
    machine(monkeypatch, "sm89", "sm75")
    assert check(engine, "qformer", "fp8") is None
    machine(monkeypatch)
    assert check(engine, "qformer", "fp8") is None  # another rule says that there is no GPU
    monkeypatch.setattr("iblip.engines.precision_support.find_driver", lambda: None)
    assert check(engine, "qformer", "fp8") is None


@pytest.mark.parametrize("engine", ["onnxruntime", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_what_runs_elsewhere_does_not_ask_this_machine(engine, monkeypatch):
    machine(monkeypatch, "sm75")
    check(engine, "qformer", "fp8")


@pytest.mark.parametrize("saturates", [True, False])
def test_openvino_is_said_to_saturate_on_a_processor_without_vnni(saturates, monkeypatch):
    monkeypatch.setattr("iblip.engines.precision_support.integers_saturate", lambda: saturates)
    told = check("openvino", "qformer", "int8", int8="static")
    assert (told is not None) == saturates
    assert not saturates or told.startswith("qformer=int8: this processor has no VNNI")
    for activations in ("static", "dynamic"):
        assert check("onnxruntime", "qformer", "int8", int8=activations) is None


@pytest.mark.parametrize("precision", ["fp8", "int8-fp16"])
def test_a_cpu_emulates_and_is_said_to(precision):
    told = check("onnxruntime", "qformer", precision)
    assert told.startswith(f"qformer={precision}: ONNX Runtime's CPU provider multiplies its")


@pytest.mark.parametrize(
    ("precision", "options"), [("int8", {"int8": "static"}), ("int8-fp16", {}), ("fp8", {})]
)
def test_cuda_is_said_to_multiply_floats(precision, options):
    told = check("onnxruntime-cuda", "vision_encoder", precision, **options)
    assert told.startswith(f"vision_encoder={precision}: ONNX Runtime's CUDA provider has no prod")
    assert "slower than fp16" in told
    assert check("onnxruntime-cuda", "vision_encoder", "fp16") is None


@pytest.mark.parametrize("precision", ["int4-fp16", "int4-bf16", "int8-bf16"])
def test_sixteen_bits_around_small_weights_are_said_to_be_for_a_gpu(precision):
    told = check("onnxruntime", "language_model", precision)
    assert told.startswith(f"language_model={precision}: it is for a GPU")
    assert check("onnxruntime-cuda", "language_model", precision) is None


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_wants_scales_that_are_known(engine):
    message = r"vision_encoder=int8 is not for .* Add --int8 static, or --engine onnxruntime"
    with pytest.raises(OptionError, match=message):
        check(engine, "vision_encoder", "int8")
    check(engine, "vision_encoder", "int8", int8="static")
    check("onnxruntime", "vision_encoder", "int8")


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("int4", {}),
        ("int8", {}),
        ("int8", {"llm_int8": "dynamic"}),
        ("language_model=int4-fp16", {}),
        ("language_model=int8-bf16", {}),
    ],
)
def test_vllm_wants_floats(precision, options):
    with pytest.raises(OptionError, match="Choose fp32, fp16 or bf16 for it"):
        check("vllm", "language_model", precision, **options)
    check("vllm", "language_model", "bf16")


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ("fp16", {}),
        ("bf16", {}),
        ("language_model=int4-fp16", {}),
    ],
)
def test_openvino_wants_float32_around_its_weights(precision, options):
    with pytest.raises(OptionError, match="Choose fp32, int8, int4 for it, or --llm-engine onnx"):
        check("openvino", "language_model", precision, **options)
    for word in ("fp32", "int8", "int4"):
        check("openvino", "language_model", word)
    with pytest.raises(OptionError, match="for the language model --llm-int8 weights"):
        check("openvino", "language_model", "int8", llm_int8="dynamic")


@pytest.mark.parametrize("component", ["vision_encoder", "qformer"])
def test_openvino_wants_scales_that_are_known_and_a_processor_with_bfloat16(component, monkeypatch):
    pytest.importorskip("openvino")
    for bfloat16 in (True, False):
        monkeypatch.setattr(graph, "multiplies_bfloat16", lambda can=bfloat16: can)
        for word in ("fp32", "fp16", "lavis"):
            check("openvino", component, word)
        check("openvino", component, "int8", int8="static")
        with pytest.raises(OptionError, match=r"DynamicQuantizeMatMul.* Add --int8 static"):
            check("openvino", component, "int8")
        for word in ("int8-fp16", "fp8"):
            with pytest.raises(OptionError, match=r"is for TensorRT\. Choose int8 with --int8"):
                check("openvino", component, word)
    with pytest.raises(OptionError, match=r"does not multiply bfloat16 .* Choose fp32"):
        check("openvino", component, "bf16")
    monkeypatch.setattr(graph, "multiplies_bfloat16", lambda: True)
    check("openvino", component, "bf16")


def test_cuda_wants_attention_of_sixteen_bits_and_scales_that_are_known():
    with pytest.raises(OptionError, match="no attention over slots in float32"):
        check("onnxruntime-cuda", "language_model", "fp32")
    # Small weights get 16 bits around them (`PrecisionPolicy.in_halves`).
    for precision in ("fp16", "bf16", "lavis", "int4", "int8", "int4-fp16"):
        check("onnxruntime-cuda", "language_model", precision)
    with pytest.raises(OptionError, match="DynamicQuantizeLinear, MatMulInteger"):
        check("onnxruntime-cuda", "language_model", "int8", llm_int8="dynamic")
    check("onnxruntime-cuda", "vision_encoder", "fp32")
    with pytest.raises(OptionError, match="DynamicQuantizeLinear, MatMulInteger"):
        check("onnxruntime-cuda", "vision_encoder", "int8")
    check("onnxruntime-cuda", "vision_encoder", "int8", int8="static")


def test_a_build_is_refused_before_anything_is_read(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings")
    (tmp_path / "config.json").write_text("it is not read")
    arguments = ["build", "--model", str(tmp_path), "--precision", "int8"]
    arguments += ["--engine", "tensorrt-rtx"]
    result = CliRunner().invoke(export, [*arguments, "--target", "sm89"], prog_name="export")
    assert result.exit_code == 2
    assert "is not for tensorrt-rtx" in result.output


def test_a_build_for_a_gpu_here_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx_bindings")
    (tmp_path / "config.json").write_text("it is not read")
    machine(monkeypatch, "sm86")
    monkeypatch.setattr("iblip.engines.tensorrt.libraries.has_nvidia_gpu", lambda: True)
    arguments = ["build", "--model", str(tmp_path), "--precision", "fp8"]
    arguments += ["--engine", "tensorrt-rtx"]
    result = CliRunner().invoke(export, arguments, prog_name="export")
    assert result.exit_code == 2
    assert "vision_encoder=fp8 is not for tensorrt-rtx: sm86 cannot" in result.output
