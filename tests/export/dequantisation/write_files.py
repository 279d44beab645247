"""Writes `files/`: one small LLaMA, quantised and saved by the libraries' own code.

Not run by the tests, which need none of the libraries. In an environment of its own:

    pip install torch==2.13.0 transformers==5.23.0 accelerate bitsandbytes==0.50.2 gptqmodel==7.7.0
    pip download --no-deps auto-gptq==0.7.1 autoawq==0.2.9 && (unpack both)
    PYTHONPATH=AUTO_GPTQ:AUTOAWQ python tests/export/dequantisation/write_files.py

Each folder gets the library's `model.safetensors`, its settings, and `digests.json`: dtype, shape
and sha256 of every weight as the library itself dequantises it. bitsandbytes quantises and saves
through transformers. Of AutoGPTQ, GPTQModel and AutoAWQ the layers are used, which pack and
dequantise; scales and zero points come from the least and the greatest value of each group, as no
data is at hand for the methods' own search. The two that are archived need versions of transformers
of their time for all but these layers, so their packages are opened without what their `__init__`
imports.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

FILES = Path(__file__).parent / "files"

SIZES = {
    "vocab_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}

GROUP = 16


def llama(dtype: torch.dtype) -> Any:
    """The model before it is quantised, with some weights far from the others."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8).add_(torch.randn_like(weight) * (torch.rand_like(weight) < 0.02))
    return model.to(dtype)


def digest(weight: torch.Tensor) -> list[Any]:
    raw = weight.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return [
        str(weight.dtype).removeprefix("torch."),
        list(weight.shape),
        hashlib.sha256(raw).hexdigest(),
    ]


def write_json(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def write_bitsandbytes(name: str, dtype: torch.dtype, **options: Any) -> None:
    import bitsandbytes as bnb

    folder, settings = FILES / name, BitsAndBytesConfig(**options)
    with tempfile.TemporaryDirectory() as plain:
        llama(dtype).save_pretrained(plain)
        model = LlamaForCausalLM.from_pretrained(plain, quantization_config=settings, dtype=dtype)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    digests = {}
    for path, layer in model.named_modules():
        if isinstance(layer, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            weight = bnb.functional.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        else:
            continue
        digests[f"{path}.weight"] = digest(weight)
    write_json(folder, "digests.json", digests)


Pack = Callable[[torch.nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor], Any]
"""Packs a layer `[out, in]` with scales and zero points `[out, groups]`, in the groups `[in]`."""


def write_layers(
    name: str, bits: int, settings: Mapping[str, Any], pack: Pack, *, ordered: bool = True
) -> None:
    """Packs every linear layer but the head; `pack` returns its tensors and its weight."""
    folder = FILES / name
    folder.mkdir(exist_ok=True)
    model = llama(torch.float32)
    tensors = {key: tensor.half().clone() for key, tensor in model.state_dict().items()}
    digests = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or path == "lm_head":
            continue
        inputs = layer.in_features
        groups = torch.arange(inputs) // GROUP
        if not ordered:
            groups = groups[torch.randperm(inputs)]
        scales, zeros = [], []
        for group in range(inputs // GROUP):
            part = layer.weight.data[:, groups == group]
            least, greatest = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
            scale = ((greatest - least) / (2**bits - 1)).half().float()
            scales.append(scale)
            zeros.append((-least / scale).round().clamp(0, 2**bits - 1))
        parts, weight = pack(layer, torch.stack(scales, 1), torch.stack(zeros, 1), groups)
        del tensors[f"{path}.weight"]
        tensors |= {f"{path}.{word}": tensor.contiguous() for word, tensor in parts.items()}
        digests[f"{path}.weight"] = digest(weight)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**model.config.to_dict(), "quantization_config": dict(settings)}
    write_json(folder, "config.json", config)
    write_json(folder, "digests.json", digests)


def auto_gptq(bits: int) -> Pack:
    bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear")
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    def pack(layer: Any, scales: Any, zeros: Any, groups: Any) -> Any:
        packed = QuantLinear(
            bits, GROUP, layer.in_features, layer.out_features, False, weight_dtype=torch.float16
        )
        half = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
        half.weight.data = layer.weight.data.half()
        # A zero point of 0 would be stored as -1, which this version writes over its neighbours.
        packed.pack(half, scales, zeros.clamp(min=1), groups.int())
        parts = {word: getattr(packed, word) for word in ("qweight", "qzeros", "scales", "g_idx")}
        # What it multiplies by: ones in turn pick out each input's weights.
        weight = packed(torch.eye(layer.in_features, dtype=torch.float16)).T
        return parts, weight

    return pack


def gptqmodel(bits: int) -> Pack:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    def pack(layer: Any, scales: Any, zeros: Any, groups: Any) -> Any:
        packed = TorchLinear(
            bits=bits,
            group_size=GROUP,
            sym=False,
            desc_act=True,
            in_features=layer.in_features,
            out_features=layer.out_features,
        )
        packed.pack_original(layer, scales, zeros, groups.int())
        packed.post_init()
        parts = {word: getattr(packed, word) for word in ("qweight", "qzeros", "scales", "g_idx")}
        parts = {word: tensor.clone() for word, tensor in parts.items()}
        return parts, packed.dequantize_weight().T

    return pack


def auto_awq() -> Pack:
    bare("awq", "awq.modules", "awq.modules.linear", "awq.utils")
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    def pack(layer: Any, scales: Any, zeros: Any, groups: Any) -> Any:
        packed = WQLinear_GEMM.from_linear(
            layer, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
        )
        weight = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP).T
        return dict(packed.state_dict()), weight

    return pack


def bare(*packages: str) -> None:
    """Opens packages without running their `__init__`."""
    for name in packages:
        module = types.ModuleType(name)
        place = name.replace(".", "/")
        module.__path__ = [f"{root}/{place}" for root in sys.path if (Path(root) / place).is_dir()]
        sys.modules[name] = module


def main() -> None:
    FILES.mkdir(exist_ok=True)
    four, half = {"load_in_4bit": True}, torch.float16
    write_bitsandbytes(
        "bitsandbytes-nf4-double",
        torch.bfloat16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        **four,
    )
    write_bitsandbytes(
        "bitsandbytes-nf4-stored-as-bfloat16",
        half,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_quant_storage=torch.bfloat16,
        **four,
    )
    write_bitsandbytes("bitsandbytes-fp4", torch.float32, bnb_4bit_quant_type="fp4", **four)
    skipped = ["down_proj", "lm_head"]
    write_bitsandbytes("bitsandbytes-int8", half, load_in_8bit=True, llm_int8_skip_modules=skipped)
    gptq = {"quant_method": "gptq", "group_size": GROUP, "sym": False}
    for bits in (2, 3, 4, 8):
        settings = {**gptq, "bits": bits, "desc_act": False, "checkpoint_format": "gptq"}
        write_layers(f"gptq-{bits}", bits, settings, auto_gptq(bits))
    for bits in (3, 4):
        settings = {**gptq, "bits": bits, "desc_act": True, "checkpoint_format": "gptq_v2"}
        write_layers(f"gptq_v2-{bits}", bits, settings, gptqmodel(bits), ordered=False)
    awq = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    write_layers("awq", 4, {**awq, "zero_point": True}, auto_awq())


if __name__ == "__main__":
    main()
