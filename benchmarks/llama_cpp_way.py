"""`PYTHON llama_cpp_way.py CHECKPOINT GGUF THREADS`: as `benchmarks.peer_ways`, of llama.cpp.

Runs in an environment of its own that has llama-cpp-python, gguf and numpy. Writes the LLaMA inside
an InstructBLIP checkpoint as GGUF in Q4_0, and decodes sequences side by side, past 64.
"""

import json
import statistics
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as llama
import numpy as np

AT_ONCE = (1, 4, 8, 16)
PAST, STEPS = 64, 24
PREFIX = "language_model."
Q4 = gguf.GGMLQuantizationType.Q4_0
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(checkpoint: Path, path: Path) -> None:
    """The language model of a checkpoint, four bits a weight."""
    config = json.loads((checkpoint / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    size = config["vocab_size"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([1] * size)
    for name, matrix in tensors(checkpoint / "model.safetensors"):
        if matrix.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(np.array(matrix), Q4), raw_dtype=Q4)
        else:
            writer.add_tensor(name, np.array(matrix))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """Name in GGUF and values of every weight of the language model; `file` is all float32."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name.startswith(PREFIX):
            start = 8 + length + entry["data_offsets"][0]
            yield (
                _name(name.removeprefix(PREFIX).removesuffix(".weight")),
                np.memmap(file, np.float32, "r", start, tuple(entry["shape"])),
            )


def _name(name: str) -> str:
    if name in NAMES:
        return f"{NAMES[name]}.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def times(model: Any, count: int, threads: int) -> tuple[list[float], list[float]]:
    """Milliseconds of a prompt and of a step of `count` sequences: processor, clock."""
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_seq_max = 256 * count, count
    settings.n_threads = settings.n_threads_batch = threads
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(PAST, 0, count)

    def decode(entries: Sequence[tuple[int, int]]) -> tuple[float, float]:
        started = time.process_time(), time.perf_counter()
        batch.n_tokens = len(entries)
        for i, (position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = 7 + position, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, i == len(entries) - 1 or i < count
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama.cpp could not decode")
        llama.llama_get_logits_ith(context, 0)
        return (time.process_time() - started[0]) * 1e3, (time.perf_counter() - started[1]) * 1e3

    def median(taken: Iterable[tuple[float, float]]) -> list[float]:
        return [statistics.median(each) for each in zip(*taken, strict=True)]

    prompts = [decode([(at, sequence) for at in range(PAST)]) for sequence in range(count)]
    steps = [decode([(PAST + at, one) for one in range(count)]) for at in range(STEPS)]
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return median(prompts), median(steps)


def main() -> None:
    """Converts once, then measures every number of sequences."""
    checkpoint, path, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    if not path.exists():
        write_gguf(checkpoint, path)
    llama.llama_backend_init()
    settings = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(str(path).encode(), settings)
    figures = {}
    for count in AT_ONCE:
        prompt, step = times(model, count, threads)
        figures[f"step of {count}"] = dict(zip(("cpu_ms", "ms"), step, strict=True))
    figures["prompt"] = dict(zip(("cpu_ms", "ms"), prompt, strict=True))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
