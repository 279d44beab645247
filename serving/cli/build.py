"""`iblip build`: a checkpoint to a build directory that Triton can serve."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from iblip.serving.cli.commands import Command, Interrupted
from iblip.serving.cli.formatting import echo, echo_json
from iblip.serving.cli.kinds import ENGINE, LLM_ENGINE, PATH, PRECISION, Word
from iblip.serving.cli.options import (
    as_json,
    cache_from_flags,
    engine_cache_option,
    no_engine_cache_option,
    options_of,
    plan_options,
    quantisation_options,
    size_options,
    source_options,
)


def _read_size(ctx: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Raises OptionError for what is no size."""
    from iblip.engines.memory import bytes_from_text

    return None if text is None else bytes_from_text(text)


HEADINGS = {
    "Model": ("model", "revision", "parts", "lora_alpha", "adapters", "image_size"),
    "Precision": (
        "precision",
        "int8",
        "llm_int8",
        "calibration",
        "block_size",
        "asymmetric",
        "int4_method",
        "sensitive",
    ),
    "Engines": ("engine", "llm_engine", "triton_backend", "gpu_memory"),
    "TensorRT plans": (
        "targets",
        "flags",
        "workspace",
        "profiles",
        "opt_batch",
        "max_instruction",
        "opt_instruction",
    ),
    "vLLM": ("tensor_parallel", "pipeline_parallel", "executor", "gpu_memory_utilization"),
    "What the server takes on": (
        "slots",
        "max_length",
        "max_batch",
        "max_images",
        "queue",
        "max_prompt_bytes",
        "max_option_bytes",
        "max_logprobs",
        "prefix_cache",
    ),
    "Verification": ("verify", "examples", "limit"),
    "Caches": ("engine_cache", "no_engine_cache", "trace_cache"),
}
"""Heading in `--help` to the options under it."""


@click.command(
    cls=Command, short_help="Build a checkpoint for Triton: ONNX and engines.", headings=HEADINGS
)
@source_options(of_build=False)
@click.option(
    "--lora-alpha",
    multiple=True,
    metavar="[COMPONENT=]ALPHA",
    help="Alpha of LoRA inside of an original's file, where the file does not say it; also for one "
    "component, such as qformer=16. Repeatable.",
)
@click.option(
    "--image-size",
    type=int,
    help="Height and width of images, in pixels. Default: the checkpoint's own.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="Build directory. Default: build/<checkpoint>-<precision>, and -vllm with vLLM.",
)
@click.option(
    "-p",
    "--precision",
    "--dtype",
    "precision",
    type=PRECISION,
    default="fp32",
    show_default=True,
    help="fp32, fp16, bf16, int8, int4 (the language model's weights alone; all else of it is "
    "float32, on a GPU 16 bits), int4-fp16, int4-bf16, int8-bf16 (all else named), int8-fp16 and "
    "fp8 (TensorRT: 8 bits and fp16), lavis (the original's mixture), or a policy per component: "
    "vision_encoder=fp16,language_model=int4. float32, float16 and bfloat16 are known too.",
)
@quantisation_options
@click.option(
    "--engine",
    type=ENGINE,
    default="auto",
    show_default=True,
    help="What runs vision encoder and Q-Former: auto, onnxruntime or openvino (on the CPU), "
    "onnxruntime-cuda, onnxruntime-tensorrt or onnxruntime-tensorrt-rtx (ONNX Runtime on a GPU), "
    "tensorrt or tensorrt-rtx (plans).",
)
@plan_options
@engine_cache_option
@no_engine_cache_option
@click.option(
    "--trace-cache/--no-trace-cache",
    default=True,
    help="Take graphs that were traced for another build. They are kept in $IBLIP_CACHE/traces, or "
    "in iblip/traces among the user's caches.",
)
@click.option(
    "--llm-engine",
    type=LLM_ENGINE,
    default="onnxruntime",
    show_default=True,
    help="What runs the language model: onnxruntime (in 16 bits on CUDA where --engine is "
    "onnxruntime-cuda or onnxruntime-tensorrt), onnxruntime-cuda, openvino (fp32, int4 and "
    "int8 on a CPU), or vllm (LLaMA and OPT).",
)
@click.option(
    "--gpu-memory",
    metavar="SIZE",
    callback=_read_size,
    help="Memory of the GPU that the build is for, such as 24GB. Slots and positions that are not "
    "asked for are chosen to fit. Default: this machine's GPU; without one, 24GB.",
)
@click.option(
    "--triton-backend",
    type=Word(lambda: ("auto", "python", "native")),
    default="auto",
    show_default=True,
    help="What of Triton carries vision encoder and Q-Former: python, native (its own backends "
    "onnxruntime and tensorrt, of NVIDIA's container), or auto (native for plans of TensorRT).",
)
@click.option(
    "--tensor-parallel",
    "--tensor-parallel-size",
    "tensor_parallel",
    type=int,
    help="vLLM: GPUs a layer is spread over. Default: 1.",
)
@click.option(
    "--pipeline-parallel",
    "--pipeline-parallel-size",
    "pipeline_parallel",
    type=int,
    help="vLLM: groups of layers. Default: 1.",
)
@click.option(
    "--executor",
    type=Word(lambda: ("mp", "ray")),
    help="vLLM: mp (one machine) or ray (several). Default: mp.",
)
@click.option(
    "--gpu-memory-utilization",
    type=float,
    help="vLLM: the share of a GPU's memory that it may take. Default: what vision encoder and "
    "Q-Former leave of it.",
)
@size_options
@click.option(
    "--slots",
    "--max-num-seqs",
    "slots",
    type=int,
    help="Sequences that the language model runs at once: every answer or beam is one. "
    "Default: 8, on vLLM 64, or on a GPU as many of them as fit.",
)
@click.option(
    "--max-length",
    "--max-model-len",
    "max_length",
    type=int,
    help="Positions of a sequence: image, prompt and answer. Default: the model's own, or on a GPU "
    "as many of them as fit.",
)
@click.option(
    "--max-images",
    type=int,
    help="Most images of a request. Default: 4 where the model takes several, else 1.",
)
@click.option("--queue", default=256, show_default=True, help="Requests that may wait for slots.")
@click.option(
    "--max-prompt-bytes", default=16_384, show_default=True, help="Most bytes of a prompt."
)
@click.option(
    "--max-option-bytes",
    default=262_144,
    show_default=True,
    help="Most bytes of a request's options, as JSON.",
)
@click.option(
    "--max-logprobs",
    default=100_000,
    show_default=True,
    help="Most log-probabilities in the answers to a request.",
)
@click.option(
    "--prefix-cache/--no-prefix-cache",
    "--enable-prefix-caching/--no-enable-prefix-caching",
    "prefix_cache",
    default=True,
    help="Reuse keys and values of a prefix that was read before. Default: --prefix-cache.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    help="Compare graphs and answers with transformers before the build is put in place.",
)
@click.option(
    "--examples",
    type=PATH,
    help="Directory with examples.jsonl to compare answers on. Default: the checkpoint's own.",
)
@click.option("--limit", type=int, help="Compare answers on only so many examples.")
@click.option("--force", is_flag=True, help="Build again even where nothing has changed.")
@click.option("--dry-run", is_flag=True, help="Say what would be built, and what it takes; stop.")
@as_json
def command(
    model: str | None,
    revision: str | None,
    parts: tuple[str, ...],
    adapters: tuple[str, ...],
    lora_alpha: tuple[str, ...],
    image_size: int | None,
    output: Path | None,
    precision: str,
    engine_cache: Path | None,
    no_engine_cache: bool,
    trace_cache: bool,
    verify: bool,
    force: bool,
    dry_run: bool,
    json_: bool,
    **flags: Any,
) -> None:
    """Export a checkpoint to verified ONNX, build its engines, assemble its Triton repository."""
    from iblip.engines.tensorrt.options import PlanOptions
    from iblip.export.artifact.manifest import Manifest
    from iblip.export.checkpoint.demo import demo_checkpoint
    from iblip.export.checkpoint.source import (
        ModelSource,
        adapters_from_words,
        alphas_from_words,
        parts_from_words,
    )
    from iblip.export.opening import source_of_adapters
    from iblip.export.quantisation.options import QuantisationOptions
    from iblip.export.system.cache_directory import cache_directory
    from iblip.serving.builder import options
    from iblip.serving.builder.build import build
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.cli.quiet import quiet_libraries

    progress = command_progress()
    quiet_libraries()
    verification = options_of(options.VerificationOptions, flags)
    names = adapters_from_words(adapters)
    if model is None and names:
        base = source_of_adapters(names, progress)
        model, revision = base.model, revision or base.revision
    asked = options.BuildOptions(
        source=ModelSource(
            model=model or str(demo_checkpoint()),
            revision=revision,
            parts=parts_from_words(parts),
            image_size=image_size,
            adapters=names,
            lora_alpha=alphas_from_words(lora_alpha),
        ),
        output=output,
        precision=precision,
        quantisation=options_of(QuantisationOptions, flags),
        engines=options_of(options.EngineOptions, flags),
        vllm=options_of(options.VllmOptions, flags),
        plans=options_of(PlanOptions, flags),
        sizes=options_of(options.SizeOptions, flags),
        limits=options_of(options.LimitOptions, flags),
        caches=options.CacheOptions(
            engines=cache_from_flags(engine_cache, no_engine_cache),
            traces=cache_directory("traces") if trace_cache else None,
        ),
        verification=verification if verify else None,
        force=force,
    )
    if dry_run:
        from iblip.serving.builder.dry_run import plan

        planned = plan(asked, progress)
        if json_:
            echo_json(planned.to_json())
        else:
            echo(str(planned))
        return
    try:
        directory = build(asked, progress)
    except KeyboardInterrupt:
        shown = _shown(asked.destination.absolute())
        raise Interrupted(f"Nothing was written to {shown}.") from None
    if json_:
        manifest = Manifest.read(directory)
        echo_json({"directory": str(directory), **manifest.to_json()})
    else:
        shown = _shown(directory)
        echo(f"Built {shown}\nServe it:  iblip serve {shlex.quote(str(shown))}")


def _shown(directory: Path) -> Path:
    here = Path.cwd()
    return directory.relative_to(here) if directory.is_relative_to(here) else directory
