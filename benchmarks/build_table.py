"""What a build costs at true sizes, beside what reading and writing the same bytes costs.

    python -m benchmarks.build_table                            the four sizes
    python -m benchmarks.build_table --model instructblip-flan-t5-xl --case float16:fp16 --again
    python -m benchmarks.build_table --model instructblip-vicuna-7b --rank 16 --no-genai
    python -m benchmarks.build_table --genai-only               a LLaMA of 1.3 B, ours and GenAI's

Checkpoints are synthesized, one at a time, and deleted. Before each reading the system's cache is
dropped where that is permitted; the figures say whether it was. GenAI's builder is of
`onnxruntime-genai` (`pip install 'iblip[bench]'`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from benchmarks.measure import load_figures, run, save_figures
from iblip.serving.cli.quiet import quiet_libraries

MODELS = (
    "instructblip-flan-t5-xl",
    "instructblip-vicuna-7b",
    "instructblip-flan-t5-xxl",
    "instructblip-vicuna-13b",
)
CASES = ("float16:fp16", "float16:int4", "float32:fp16")
"""Dtype of the checkpoint, and precision of the build. The last is left out where the disk has no
room for it."""

SMALL: Mapping[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 24,
    "intermediate_size": 5504,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 32000,
}
"""The LLaMA of 1.3 B that GenAI's builder is given."""

LEFT_ALONE = re.compile(r"embed|lm_head|relative_attention_bias")
"""Modules that have a matrix and are no linear layer that peft's `all-linear` takes."""

CACHES = Path("/proc/sys/vm/drop_caches")
BLOCK = 2**24


@click.command()
@click.option(
    "--model", "models", multiple=True, default=MODELS, help="A name from `iblip models`."
)
@click.option("--case", "cases", multiple=True, default=CASES, help="Source dtype:precision.")
@click.option("--again", is_flag=True, help="Also a second build, which finds the graphs traced.")
@click.option("--rank", type=int, help="Also with a random LoRA of this rank on all linear layers.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Directory for temporary files.")
@click.option("--genai/--no-genai", default=True, help="Also GenAI's builder, on 1.3 B.")
@click.option("--genai-only", is_flag=True, help="Run only GenAI's comparison.")
def main(
    models: tuple[str, ...],
    cases: tuple[str, ...],
    again: bool,
    rank: int | None,
    scratch: Path | None,
    genai: bool,
    genai_only: bool,
) -> None:
    """Measure builds of true size, and add the figures to the saved ones."""
    quiet_libraries()
    with TemporaryDirectory(dir=scratch or Path.cwd(), prefix=".benchmarks-") as directory:
        for model in () if genai_only else models:
            for dtype in sorted({case.partition(":")[0] for case in cases}):
                precisions = [case.partition(":")[2] for case in cases if case.startswith(dtype)]
                _save(_measure(model, dtype, precisions, again, rank, Path(directory)))
        if genai or genai_only:
            _save({"llama-1.3b": _compare_with_genai(Path(directory))})


def _save(table: dict[str, Any]) -> None:
    saved = load_figures("build_table")
    for name, figures in table.items():
        saved[name] = {**saved.get(name, {}), **figures}
        click.echo(f"{name}: {json.dumps(figures, indent=2)}")
    save_figures("build_table", saved)


def _measure(
    model: str, dtype: str, precisions: list[str], again: bool, rank: int | None, scratch: Path
) -> dict[str, Any]:
    """Figures by `dtype:precision` of one checkpoint, which is made and deleted here."""
    size = _bytes_of(model, dtype)
    room = shutil.disk_usage(scratch).free
    if room < 1.6 * size:
        skipped = f"{room / 1e9:.0f} GB are free, {1.6 * size / 1e9:.0f} GB are needed"
        return {model: {f"{dtype}:{name}": {"skipped": skipped} for name in precisions}}
    checkpoint = scratch / f"{model}-{dtype}"
    run(["iblip", "export", "synthesize", model, str(checkpoint), "--dtype", dtype])
    try:
        figures = {f"{dtype}:{name}": _build(checkpoint, name, again) for name in precisions}
        if rank is not None:
            adapter = _write_adapter(checkpoint, scratch / "adapter", rank)
            for name in precisions:
                figures[f"{dtype}:{name}, LoRA of rank {rank}"] = _build(
                    checkpoint, name, again, adapter
                )
        return {model: figures}
    finally:
        shutil.rmtree(checkpoint)


def _write_adapter(checkpoint: Path, directory: Path, rank: int) -> Path:
    """Writes a random LoRA on every linear layer but the head, as peft names and saves it."""
    import torch
    from safetensors.torch import save_file

    from iblip.export.checkpoint.checkpoint import checkpoint_from_directory

    torch.manual_seed(0)
    tensors = {}
    for name, weight in checkpoint_from_directory(checkpoint).tensors.items():
        module, _, parameter = name.rpartition(".")
        if parameter != "weight" or len(weight.shape) != 2 or LEFT_ALONE.search(module):
            continue
        outputs, inputs = weight.shape
        stem = f"base_model.model.{module}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, inputs) * 0.02
        tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, rank) * 0.02
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def _bytes_of(model: str, dtype: str) -> int:
    from iblip.export.models.table import MODELS as TABLE

    return sum(TABLE[model].parameters.values()) * (4 if dtype == "float32" else 2)


def _build(
    checkpoint: Path, precision: str, again: bool = False, adapter: Path | None = None
) -> dict[str, Any]:
    """One build, and the time to read its source and to write as many bytes as it wrote.

    With `again`, also the time of the next, of the same source to another directory.
    """
    output = checkpoint.with_name("build")
    cold = _drop_caches()
    build = ["iblip", "export", "build", "--model", str(checkpoint), "--precision", precision]
    if adapter is not None:
        build += ["--adapter", str(adapter)]
    build += ["--no-verify", "--output", str(output)]
    second: dict[str, float] = {}
    with TemporaryDirectory(dir=checkpoint.parent) as cache:
        process = run(build, Path(cache))
        if again:
            shutil.rmtree(output)
            _drop_caches()
            second = {"again_seconds": round(run(build, Path(cache)).seconds, 1)}
    stats = [path.lstat() for path in output.rglob("*") if path.is_file()]
    written = sum(stat.st_size for stat in stats if stat.st_nlink == 1)
    bound = {stat.st_ino: stat.st_size for stat in stats}
    shutil.rmtree(output)
    _drop_caches()
    source = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    cat = _time_copy(
        sorted(checkpoint.glob("*.safetensors")), checkpoint.with_name("copy"), written
    )
    return {
        **process.to_json(),
        **second,
        "cat_seconds": round(cat, 1),
        "source_bytes": source,
        "output_bytes": sum(bound.values()),
        "new_bytes": written,
        "ratio_without_a_minute": round(max(process.seconds - 60, 0) / cat, 2),
        "cache": "cold" if cold else "warm",
    }


def _drop_caches() -> bool:
    """Drops the system's page cache; false where that is not permitted (it takes root)."""
    os.sync()
    try:
        CACHES.write_text("3")
    except OSError:
        return False
    return True


def _time_copy(files: list[Path], target: Path, size: int) -> float:
    """Seconds to read the files and then to write `size` bytes to the disk itself."""
    started, buffer = time.monotonic(), bytearray(BLOCK)
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    with target.open("wb") as stream:
        for start in range(0, size, BLOCK):
            stream.write(buffer[: min(BLOCK, size - start)])
        stream.flush()
        os.fsync(stream.fileno())
    seconds = time.monotonic() - started
    target.unlink()
    return seconds


def _compare_with_genai(scratch: Path) -> dict[str, Any]:
    """Both builders to int4: GenAI's on a LLaMA, ours on an InstructBLIP that has it."""
    checkpoint = _small_instructblip(scratch)
    ours = _build(checkpoint, "int4")
    llama = _llama(scratch)
    shutil.rmtree(checkpoint)
    _drop_caches()
    genai = run(
        [
            "onnxruntime_genai.models.builder",
            *("-i", str(llama), "-o", str(scratch / "genai"), "-p", "int4", "-e", "cpu"),
            *("-c", str(scratch / "cache"), "--extra_options", "exclude_embeds=true"),
        ]
    )
    size = sum(path.stat().st_size for path in llama.glob("*.safetensors"))
    shutil.rmtree(llama)
    return {
        "ours (with vision encoder and Q-Former)": ours,
        "GenAI's builder (language model alone)": {**genai.to_json(), "source_bytes": size},
    }


def _small_instructblip(scratch: Path) -> Path:
    """InstructBLIP on Vicuna as synthesized, but for its language model's size."""
    from dataclasses import replace

    from iblip.export.models.table import MODELS as TABLE
    from iblip.export.synthesis.checkpoint import Synthesis, synthesize

    model = TABLE["instructblip-vicuna-7b"]
    small = replace(model, text={**model.text, **SMALL})
    checkpoint = scratch / "instructblip-llama-1.3b"
    synthesize(Synthesis(model=small, dtype="float32", seed=0), checkpoint)
    return checkpoint


def _llama(scratch: Path) -> Path:
    """A random LLaMA of that size as a checkpoint of its own."""
    import torch
    import transformers

    directory = scratch / "llama-1.3b"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL)
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    demo = Path(__file__).parents[1] / "checkpoints" / "instructblip-demo-vicuna"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, directory / name)
    return directory


if __name__ == "__main__":
    main()
