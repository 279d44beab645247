"""What `--json` prints: the fields of every command's document, from which `docs/json.md` is made.

`python -m iblip.serving.cli.documents > docs/json.md` writes the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from iblip.serving.cli.commands import EXIT_STATUSES
from iblip.serving.cli.formatting import FORMAT, echo

ERROR: Mapping[str, str] = {
    "kind": "name of the error's class, such as `OptionError`; `UsageError` where the command line "
    "cannot be read, `Interrupted` after Ctrl-C",
    "message": "what was asked, what was found, what to do",
    "exit_status": "status that the process ends with",
}
"""Fields of `error`."""

BUILD: Mapping[str, str] = {
    "name": "of the checkpoint",
    "family": "instructblip, blip2 or minigpt4",
    "source": "what opens the checkpoint again, and the sha256 of its files",
    "precision": "component to precision",
    "components": "component to precision, graphs with their contracts, engine and quantisation",
    "preprocessing": "how images are resized",
    "text": "prompt template, stop strings and the limits of prompts",
    "language_model": "architecture, layers, heads, positions",
    "limits": "slots, positions, queue, images, batch, bytes",
    "verification": "of every graph and of answers, or why it was skipped",
    "tools": "library to version",
    "created": "UTC, ISO 8601",
    "references": "what `iblip prove` compares with; null without verification",
}
"""Fields of a manifest, `manifest.json` in a build."""

PRUNED: Mapping[str, str] = {
    "directory": "of the cache",
    "dry_run": "whether nothing was removed",
    "removed": "keys of what was removed",
    "freed": "bytes of disk space that are free again",
    "kept": "bytes that stay",
}

DOCUMENTS: Mapping[str, Mapping[str, str]] = {
    "build": {"directory": "of the build", **BUILD},
    "build --dry-run": {
        "directory": "where the build would go",
        "name": "of the checkpoint",
        "synthetic": "whether its weights are random",
        "components": "what each component would be, in bytes",
        "source": "dtype to bytes of the checkpoint that would be read",
        "downloaded": "bytes that would be downloaded first",
        "disk": "`written`, `linked` and `free` bytes, and whether it `fits`",
        "memory": "bytes that a server takes; null on a GPU, and of fp16 on OpenVINO",
        "gpu_memory": "bytes of a GPU; null where nothing runs on one",
        "seconds": "estimate, without verification",
        "rates": "what the estimate assumes",
        "verify": "whether answers would be compared with transformers",
    },
    "inspect": {**BUILD, "proof": "record of `iblip prove`; null if there is none"},
    "verify": {
        "checkpoint": "its name",
        "model": "where it was read from",
        "synthetic": "whether its weights are random",
        "reference": "how transformers ran, and why",
        "examples": "number of examples",
        "created": "UTC, ISO 8601",
        "tools": "library to version",
        "passed": "whether all builds are within every limit",
        "verdict": "the same as a sentence, with what fails",
        "samples": "a few examples with their images and everybody's answers",
        "builds": "of each build, its size, its time of an answer, its stages and their checks",
    },
    "prove": {
        "build": "name of the checkpoint",
        "family": "instructblip, blip2 or minigpt4",
        "synthetic": "whether its weights are random",
        "manifest": "sha256 of the build's manifest",
        "engines": "component to engine",
        "precision": "component to precision",
        "gpu": "name, memory and capability; null without one",
        "driver": "its version",
        "cuda": "its version",
        "stubs": "whether the GPU is a stand-in of tests",
        "versions": "library to version",
        "python": "its version",
        "machine": "architecture of the processor",
        "limit": "most questions of each kind; null is all",
        "created": "UTC, ISO 8601",
        "verdict": "passed or failed",
        "proven": "whether `--engine auto` takes it as proof",
        "reason": "why not, or what was left out",
        "stages": "stage to its facts",
    },
    "synthesize": {
        "directory": "of the checkpoint",
        "model": "whose shapes it has",
        "dtype": "of its weights",
        "seed": "of its weights",
        "bytes": "of its weights",
        "seconds": "that it took",
    },
    "serve": {
        "name": "of the checkpoint",
        "synthetic": "whether its weights are random",
        "ready_s": "seconds until it was ready",
        "grpc": "host:port",
        "http": "URL",
        "metrics": "URL",
        "health": "URL",
        "openai": "address of OpenAI's API; only with --openai-port",
    },
    "serve --print-command": {
        "command": "words of the command that starts Triton",
        "environment": "variables that it needs",
        "directory": "where to run it",
    },
    "gateway": {"openai": "address of OpenAI's API", "models": "names of all models"},
    "ask": {
        "text": "the answer",
        "token_ids": "as generated",
        "finish_reason": "why it ended",
        "completion_tokens": "generated tokens",
        "logprobs": "of every token; null if not asked for",
        "score": "of a beam search or a ranking; null elsewhere",
        "prompt_tokens": "positions of image and prompt",
        "seed": "that was used; null where nothing is drawn",
        "timing": "where the time went, in seconds",
        "others": "the other answers, with `--n`",
        "ranking": "every candidate, most likely first",
        "cached_prompt_tokens": "of `prompt_tokens`, those from the prefix cache; null where that "
        "is not known",
    },
    "run": {
        "answered": "questions that were answered",
        "failed": "questions whose line in the output has an error",
        "present": "questions whose line was there before",
        "vision_cache_hits": "images that were found encoded, once for each question; null of "
        "servers",
        "cached_prompt_tokens": "positions that were taken from the prefix cache; null where "
        "that is not known",
    },
    "demo": {
        "right": "answers that are right",
        "asked": "questions",
        "wanted": "right answers that the checkpoint claims",
        "answers": "of each question, its answer and times",
    },
    "bench": {
        "requests": "number of requests",
        "concurrency": "callers of a closed loop; null in an open one",
        "rate": "arrivals a second of an open loop; null in a closed one",
        "seconds": "from the start to the last answer",
        "answered": "requests that have an answer",
        "refused": "requests that found the queue full",
        "timed_out": "requests that had no answer within `--timeout`",
        "failed": "requests with any other error",
        "faults": "up to three messages of those",
        "requests_a_second": "rate of answers",
        "tokens_a_second": "rate of generated tokens",
        "first_text_s": "percentile to seconds until an answer's first text",
        "token_s": "percentile to seconds a token after the first text",
        "whole_answer_s": "percentile to seconds",
        "sent_s": "percentile to seconds until a request that was due had been sent",
        "slo": "`ttft_s`, `itl_s`, `e2e_s` and `share`; null without `--slo`",
        "within_slo": "share of all requests that met the SLO; null without `--slo`",
        "goodput": "requests a second that met the SLO; null without `--slo`",
        "search": "`rate` that was found or null, `capacity` of the closed loop, and what was "
        "`tried`; null without `--search`. The other fields are then of the rate that was found, "
        "or of the last one that was tried",
    },
    "bench --write-inputs": {
        "directory": "where the files are",
        "files": "their names",
        "requests": "number of requests",
    },
    "tune": {
        "build": "its directory",
        "settings": "what was measured of each: `slots`, `max_batch`, `queue_delay_us`, `memory` "
        "in bytes, `turns` as in `iblip bench`, `efficient` if no other is better in every way",
        "left_out": "settings that were not measured, and the `reason` of each",
        "recommended": "setting with the highest goodput, or most answers a second without `--slo`",
        "steps": "what to do to serve the build with it; empty where it has it",
    },
    "models": {"models": "every known model"},
    "doctor": {
        "verdict": "ok, note, warning or problem",
        "machine": "findings about this machine",
        "container": "the container that was asked about; null if none was",
        "driver": "NVIDIA's driver; null if there is none",
        "builds": "findings about each build",
    },
    "lint": {
        "repository": "directory",
        "models": "names",
        "server": "that the repository is checked for",
        "errors": "number",
        "warnings": "number",
        "notes": "number",
        "findings": "file, line, rule, reason and remedy of each",
    },
    "lint --rules": {"rules": "id, severity, title, why, mend and server of each"},
    "engines build": {"directory": "of the plans", "plans": "path and details, or a reason"},
    "engines list": {
        "directory": "of the cache",
        "plans": "every plan, last used first",
        "damaged": "key to what is wrong",
        "timing": "timing caches of TensorRT",
        "providers": "what ONNX Runtime's providers compiled",
    },
    "engines inspect": {"plans": "key, or component and graph, to what is known"},
    "engines prune": {
        **PRUNED,
        "timing": "names of timing caches that were removed",
        "providers": "folders that were removed",
        "busy": "what stays because another process uses it",
        "held": "bytes that builds still hold",
    },
    "traces list": {"directory": "of the cache", "traces": "key, bytes and last use of each"},
    "traces prune": PRUNED,
    "vllm install": {
        "directory": "of the environment",
        "package": "that was installed",
        "vllm": "its version",
    },
}
"""Command to the fields of its document, `format` left out."""

OWN_FORMAT = ("build", "inspect", "verify", "prove")
"""Commands whose `format` is that of a file which has the same content."""

HEAD = f"""\
# What `--json` prints

Every command with a result takes `--json`. It prints one JSON object on standard output; progress
and messages go to standard error.

- `format` is the first field: the version of the document, now {FORMAT}. It grows when a field is
  renamed, removed or changes its meaning. New fields may come without notice: ignore the ones that
  you do not know.
- `iblip ask --stream --json` prints a line for each piece, `{{"delta": "…"}}`, before the line of
  the whole answer. `iblip serve --json` prints its line when the server is ready.
- Each line that `iblip run` writes to its output has `id`, `prompt` and the fields of `iblip ask`,
  or `id`, `prompt` and `error`, an object of `kind` and `message`. It has no `format`.
- Sizes are in bytes and times in seconds.

`python -m iblip.serving.cli.documents` prints this page.
"""


def json_page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *_errors(), *_statuses(), *_commands()])


def _errors() -> Iterator[str]:
    yield "## Errors\n"
    yield 'If a command fails, the object is `{"format": …, "error": {…}}`, on one line:\n'
    yield from _rows(ERROR)
    yield (
        "\n`verify`, `prove`, `lint` and `doctor` print their own document also where the exit"
        " status is 1.\n"
    )


def _statuses() -> Iterator[str]:
    yield "## Exit statuses\n"
    yield from _rows({str(status): meaning for status, meaning in EXIT_STATUSES.items()})
    yield "\n`iblip serve` ends with 0 when Ctrl-C or SIGTERM stops it: its work is done then.\n"


def _commands() -> Iterator[str]:
    for command, fields in DOCUMENTS.items():
        yield f"## iblip {command}\n"
        if command in OWN_FORMAT:
            yield f"`format` is that of the {_file(command)}.\n"
        yield from _rows(fields)
        yield ""


def _file(command: str) -> str:
    files = {"verify": "report, `report.json`", "prove": "record, `record.jsonl`"}
    return files.get(command, "build's `manifest.json`")


def _rows(fields: Mapping[str, str]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, meaning in fields.items():
        yield f"| `{name}` | {meaning} |"


if __name__ == "__main__":
    echo(json_page(), nl=False)
