"""NVIDIA's AIPerf asks the gateway; its own report is `benchmarks/aiperf-NAME.json`.

AIPerf is in the environment of `make test-openai-clients`: its pins do not fit this project's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.builds import build
from benchmarks.served import serve
from iblip.serving.gateway.process import GatewayProcess

VARIABLE = "IBLIP_OPENAI_CLIENTS"
"""The environment variable that names the folder of that environment's commands."""

CLIENTS = Path(".venv-openai-clients/bin").absolute()
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "config.json")
TOKENS = 20
FIGURES = ("request_throughput", "time_to_first_token", "inter_token_latency", "request_latency")
SHOWN = ("avg", "p50", "p99")
LIMIT_S = 300


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """AIPerf's main figures, of a build that is served here; keeps the whole report, too."""
    with (
        serve(build(checkpoint, scratch)) as server,
        GatewayProcess("127.0.0.1", 0, print) as gateway,
    ):
        gateway.start([f"{checkpoint.name}={server.grpc_url}"])
        report = profile(gateway.url, checkpoint, scratch / "aiperf", requests=400)
    kept = Path(__file__).with_name(f"aiperf-{checkpoint.name}.json")
    kept.write_text(json.dumps(report, indent=1) + "\n")
    return {
        name: {key: round(value, 2) for key, value in report[name].items() if key in SHOWN}
        for name in FIGURES
    }


def profile(url: str, checkpoint: Path, directory: Path, *, requests: int) -> dict[str, Any]:
    """AIPerf's report on a gateway, less the paths of this machine.

    Every answer has exactly `TOKENS` tokens, streamed; four requests are open at a time; images are
    JPEGs of noise.

    Args:
        url: of the gateway, which has a model of the checkpoint's name.
        checkpoint: has the tokenizer that AIPerf counts with.
        directory: new; for AIPerf's files.
        requests: how many.
    """
    # A copy within the directory: the report has the tokenizer's path as it is given.
    (directory / "tokenizer").mkdir(parents=True)
    for name in TOKENIZER:
        shutil.copy(checkpoint / name, directory / "tokenizer")
    command = Path(os.environ.get(VARIABLE, CLIENTS)) / "aiperf"
    options = {
        "--model": checkpoint.name,
        "--url": url,
        "--endpoint-type": "chat",
        "--tokenizer": "tokenizer",
        "--image-batch-size": 1,
        "--image-width-mean": 256,
        "--image-height-mean": 192,
        "--image-format": "jpeg",
        "--isl": 12,
        "--osl": TOKENS,
        "--extra-inputs": f"min_new_tokens:{TOKENS}",
        "--concurrency": 4,
        "--request-count": requests,
        "--random-seed": 7,
        "--artifact-dir": "artifacts",
        "--ui": "none",
    }
    words = [str(word) for pair in options.items() for word in pair]
    log = directory / "aiperf.log"
    with log.open("w") as file:
        subprocess.run(
            [command, "profile", "--streaming", *words],
            cwd=directory,
            check=True,
            timeout=LIMIT_S,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    report: dict[str, Any] = json.loads(
        (directory / "artifacts" / "profile_export_aiperf.json").read_text()
    )
    del report["input_config"]["artifacts"]["dir"]
    return report
