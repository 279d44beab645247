"""Adapters of peft over an original's files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.adapters.adapted import adapt
from iblip.export.adapters.reading import adapter_from_name
from iblip.export.checkpoint.source import ModelSource, adapters_from_words
from iblip.export.checkpoint.text_rules import TextRules
from iblip.export.opening import checkpoint_from_source
from iblip.export.progress import Silent
from iblip.export.verification.loading import load_model
from tests.export.adapters.conftest import change, opened

OPT = "lavis:blip2_opt/pretrain_opt2.7b"


def test_an_adapter_of_the_same_model_in_hugging_face_form(opt_pair: Any, tmp_path: Path) -> None:
    """Its base is a directory, whose config is not that of the original's language model."""
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    model = get_peft_model(
        load_model(opened(opt_pair.directory)), LoraConfig(target_modules=["q_proj"])
    )
    change(model).save_pretrained(adapter)
    names = adapters_from_words([adapter])
    source = ModelSource(model=OPT, parts=opt_pair.parts, adapters=names)
    checkpoint = checkpoint_from_source(source, Silent())
    name = "language_model.model.decoder.layers.0.self_attn.q_proj.weight"
    expected = opened(opt_pair.directory, adapter).tensors[name].read()
    assert (checkpoint.tensors[name].read() == expected).all()
    # What an original does with text otherwise is not said of the adapter's own tokenizer.
    rules = TextRules(tokenizer="of another version", bytes_apart=True, start_token_id=1)
    base = replace(checkpoint.base, rules=rules)
    assert adapt(base, [adapter_from_name(names[0], Silent())]).rules == rules
    shutil.copy(opt_pair.directory / "tokenizer.json", adapter)
    shutil.copy(opt_pair.directory / "tokenizer_config.json", adapter)
    adapted = adapt(base, [adapter_from_name(names[0], Silent())])
    assert adapted.rules == TextRules(start_token_id=1)
