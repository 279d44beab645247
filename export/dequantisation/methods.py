"""`METHODS`: a row for each way in which other libraries quantise checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from iblip.export.dequantisation.awq import weights_of_awq
from iblip.export.dequantisation.bitsandbytes import MARKS, weights_of_bitsandbytes
from iblip.export.dequantisation.dequantised import Dequantised
from iblip.export.dequantisation.gptq import weights_of_gptq
from iblip.export.errors import CheckpointError
from iblip.export.messages import shown
from iblip.export.weights.weight import Weight

Dequantise = Callable[[Mapping[str, Weight], Mapping[str, Any]], dict[str, Weight]]

METHODS: Mapping[str, Dequantise] = {
    "bitsandbytes": weights_of_bitsandbytes,
    "gptq": weights_of_gptq,
    "awq": weights_of_awq,
}
"""What puts dequantised weights in place of the tensors of quantised ones, by `quant_method`."""

KEY = "quantization_config"
"""Of the settings in `config.json`, of a whole checkpoint or of the language model's part in it."""

OWN_FILES: Mapping[str, str] = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files of the settings that AutoGPTQ and AutoAWQ write, beside a `config.json` that may lack them,
and their methods."""


def settings_of(
    config: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Returns the settings of the quantisation, with `quant_method`; `None` if there are none.

    Args:
        config: content of `config.json`.
        others: content of those of `OWN_FILES` that exist.

    Raises:
        CheckpointError: they are no object.
    """
    text = config.get("text_config")
    inner = text.get(KEY) if isinstance(text, Mapping) else None
    settings = config.get(KEY) or inner
    if settings is None:
        file = next(iter(others), None)
        return None if file is None else {"quant_method": OWN_FILES[file], **others[file]}
    if not isinstance(settings, Mapping):
        raise CheckpointError(f"{KEY} is {shown(settings)}; expected an object")
    if "quant_method" in settings:
        return settings
    # As transformers wrote it before there was more than one method.
    bits = any(settings.get(key) for key in ("load_in_8bit", "load_in_4bit"))
    return {"quant_method": "bitsandbytes" if bits else "unknown", **settings}


def dequantised(
    tensors: Mapping[str, Weight], settings: Mapping[str, Any] | None
) -> dict[str, Weight]:
    """Returns the tensors with a `Dequantised` weight in place of those of each quantised one.

    Args:
        tensors: of a checkpoint, by the file's names.
        settings: as `settings_of` returns them.

    Raises:
        CheckpointError: the method is not supported, or the tensors are not what it writes.
    """
    if settings is None and any(mark in name for name in tensors for mark in MARKS):
        settings = {"quant_method": "bitsandbytes"}  # whose tensors say it all
    if settings is None:
        packed = next((name for name in tensors if name.endswith(".qweight")), None)
        if packed is None:
            return dict(tensors)
        raise CheckpointError(
            f"{packed} is of a quantised weight, and the directory does not say how it was"
            f" quantised: config.json has no {KEY}, and there is no {' or '.join(OWN_FILES)}. Take"
            " that file, too, from where the weights are from."
        )
    method = settings["quant_method"]
    if method not in METHODS:
        raise CheckpointError(
            f"the weights are quantised by {shown(method)}, which is not supported; supported are"
            f" {', '.join(METHODS)}. Give --model the checkpoint as it was before (--precision"
            " chooses how a build is quantised), or dequantise it once where its library is"
            " installed: load it with transformers, `model.dequantize().save_pretrained(NEW)`."
        )
    return METHODS[method](tensors, settings)


def methods_of(tensors: Iterable[Weight]) -> str | None:
    """Returns how many weights were quantised in which way, in words; `None` if none was."""
    counts = Counter(tensor.method for tensor in tensors if isinstance(tensor, Dequantised))
    parts = [f"{count} weights are quantised ({method})" for method, count in counts.items()]
    return " and ".join(parts) or None
