"""How long a sequence may be, from the configs of transformers' language models."""

import pytest
from transformers import AutoConfig

from iblip.export.checkpoint.cache_shape import CacheShape

QWEN2 = {"max_position_embeddings": 64, "sliding_window": 48, "num_hidden_layers": 4}


@pytest.mark.parametrize(
    ("kind", "settings", "positions"),
    [
        ("llama", {"max_position_embeddings": 64}, 64),
        ("t5", {}, 512),
        ("t5", {"n_positions": 300}, 300),
        ("mistral", {"max_position_embeddings": 64, "sliding_window": 48}, 48),
        ("mistral", {"max_position_embeddings": 64, "sliding_window": 80}, 64),
        ("mistral", {"max_position_embeddings": 64, "sliding_window": None}, 64),
        ("qwen2", QWEN2, 64),  # a window that is not used
        ("qwen2", {**QWEN2, "use_sliding_window": True, "max_window_layers": 3}, 48),
        ("qwen2", {**QWEN2, "use_sliding_window": True, "max_window_layers": 4}, 64),
    ],
)
def test_a_sequence_ends_where_a_window_would_hide_its_beginning(kind, settings, positions):
    assert CacheShape.from_config(AutoConfig.for_model(kind, **settings)).positions == positions
