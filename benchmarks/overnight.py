"""A run over held-out images that is killed 50 times, and its rate compared with the engine's."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from iblip.engines.pipeline import Pipeline
from iblip.export.examples import read_examples
from iblip.serving.bulk.rows import read_rows
from iblip.serving.bulk.running import Job, run_job
from iblip.serving.bulk.targets import BuildTarget, Targets
from iblip.serving.client.mapping import Question, map_rows

ROWS, KILLS = 10_000, 50
COMPARED, ROUNDS = 300, 5
"""Rows of each of the rounds in which the run and the engine alternate."""


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """Counts of the lines, and seconds and rates."""
    directory = build(checkpoint, scratch)
    heldout = read_examples(checkpoint.parent / "heldout")
    examples = [heldout[number % len(heldout)] for number in range(ROWS)]
    lines = [
        {"id": str(number), "image": str(one.image.absolute()), "prompt": one.prompt}
        for number, one in enumerate(examples)
    ]
    given = scratch / f"{checkpoint.name}-rows.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    killed = run_and_kill(given, scratch / f"{checkpoint.name}-killed.jsonl", directory)
    return {**killed, **rates(lines[:COMPARED], scratch, directory)}


def run_and_kill(given: Path, output: Path, directory: Path) -> dict[str, Any]:
    """What is in the output after `KILLS` kills and a last run to the end."""
    command = [sys.executable, "-m", "iblip", "-q", "run", str(given)]
    command += ["--output", str(output), "--build", str(directory)]
    chance, kills, began = random.Random(0), 0, time.monotonic()
    while kills < KILLS:
        before = count(output)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = before + chance.randint(1, 2 * ROWS // (3 * KILLS))
        while count(output) < wanted and process.poll() is None:
            time.sleep(chance.uniform(0.001, 0.02))
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself, with {process.returncode}")
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    ids = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    errors = sum("error" in json.loads(line) for line in output.read_text().splitlines())
    return {
        "rows": ROWS,
        "kills": kills,
        "lines": len(ids),
        "different_ids": len(set(ids)),
        "errors": errors,
        "seconds": round(time.monotonic() - began, 1),
    }


def count(output: Path) -> int:
    """Lines of the output."""
    return output.read_bytes().count(b"\n") if output.exists() else 0


def rates(lines: list[dict[str, str]], scratch: Path, directory: Path) -> dict[str, Any]:
    """Rows a second of a run in process, and of the engine with the same rows, alternating."""
    given = scratch / f"{directory.name}-compared.jsonl"
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = BuildTarget(directory)
    targets, found = Targets([target]), []
    with Pipeline(directory) as pipeline:

        def ask(question: Question) -> Any:
            return pipeline.answer([Path(question.image)], question.prompt)

        rows = [(line["image"], line["prompt"]) for line in lines]
        for number in range(ROUNDS):
            output = scratch / f"{directory.name}-{number}.jsonl"
            began = time.perf_counter()
            run_job(read_rows(given), targets, output, Job(options={}))
            between = time.perf_counter()
            for result in map_rows(ask, rows, concurrency=targets.concurrency(1)):
                result.unwrap()
            found.append((between - began, time.perf_counter() - between))
    target.close()
    run, engine = (statistics.median(times) for times in zip(*found, strict=True))
    return {
        "run_rows_a_second": round(len(lines) / run, 1),
        "engine_rows_a_second": round(len(lines) / engine, 1),
        "ratio": round(engine / run, 3),
    }
