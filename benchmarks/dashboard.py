"""A server under changing load, as the dashboard shows it: the plot of docs/operating.md.

Debian's `prometheus` scrapes a real server and its gateway with the rules of `deploy/prometheus`.
Requests arrive at a tenth of what the server takes, then at half, at twice, and at a tenth again;
then the process of the language model is killed. One more caller streams from the gateway all the
time. The queries are the dashboard's own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import openai

from benchmarks.arrivals import Arrival
from benchmarks.builds import build
from benchmarks.load import Requests, capacity, play
from benchmarks.served import limit
from benchmarks.server_process import ROOT, ServerProcess
from iblip.export.examples import Example, read_examples
from iblip.serving.monitoring.alerts import ALERTS
from iblip.serving.monitoring.panels import PANELS, Panel
from iblip.serving.monitoring.queries import VARIABLES, without_variables

PHASES = (0.1, 0.5, 2.0, 0.1)
"""Rates of arrival, as shares of what the server takes."""

SECONDS = 60.0
"""Duration of each phase, and of what follows the kill."""

QUEUE = 64

SCRAPE_S = 1

WINDOW = "20s"
"""For rates, in place of Grafana's own choice."""

SHOWN = (
    "Requests now",
    "Requests ended",
    "Tokens per second",
    "Ready",
    "Queue wait",
    "Time to first token",
    "Time per output token",
    "Decode batch rows",
)
"""Panels of the plot."""

PLOT = ROOT / "docs" / "images" / "dashboard.png"


def main(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """How many queries have values, and the plot."""
    from benchmarks.plots import plot_dashboard

    if shutil.which("prometheus") is None:
        raise RuntimeError("prometheus is missing: apt-get install prometheus")
    directory = build(checkpoint, scratch)
    limit(directory, queue=QUEUE)
    examples = read_examples(checkpoint / "examples")
    make = Requests(directory, examples)
    with ServerProcess(directory, scratch / "server.log", "--openai-port=0") as server:
        rate = asyncio.run(capacity(server.urls["grpc"], make))
        with (
            prometheus(server.urls, scratch / "prometheus") as url,
            streaming(server.urls["openai"], examples[0]),
        ):
            started = time.time()
            requests = asyncio.run(play(server.urls["grpc"], schedule(make, rate)))
            os.kill(server.pids()["instructblip"], signal.SIGKILL)
            time.sleep(SECONDS)
            ended = time.time()
            series = {
                panel.title: values_of(url, panel, started, ended)
                for panels in PANELS.values()
                for panel in panels
            }
            firing = ask(url, "query", query='ALERTS{alertstate="firing"}')
    panels = {panel.title: panel for row in PANELS.values() for panel in row}
    plot_dashboard(PLOT, [(panels[title], series[title]) for title in SHOWN])
    return {
        "capacity_per_s": round(rate, 1),
        "requests": len(requests),
        "without_an_answer": sum(bool(one.error) for one in requests),
        "panels_without_values": [title for title, lines in series.items() if not lines],
        "firing_at_the_end": sorted({one["metric"]["alertname"] for one in firing}),
        "alerts": len(ALERTS),
    }


def schedule(make: Requests, rate: float) -> list[Arrival]:
    """The arrivals of all phases."""
    return [
        replace(arrival, at_s=arrival.at_s + phase * SECONDS)
        for phase, share in enumerate(PHASES)
        for arrival in make.poisson(rate * share, SECONDS)
    ]


@contextmanager
def streaming(url: str, example: Example) -> Iterator[None]:
    """Streams one answer after the other from a gateway, whatever becomes of them."""
    image = base64.b64encode(example.image.read_bytes()).decode()
    address = {"url": f"data:image/webp;base64,{image}"}
    content = [{"type": "image_url", "image_url": address}, {"type": "text", "text": "Describe."}]
    left = threading.Event()

    def work() -> None:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        model = client.models.list().data[0].id
        create: Any = client.chat.completions.create
        while not left.wait(0.5):
            with suppress(openai.OpenAIError):
                messages = [{"role": "user", "content": content}]
                list(create(model=model, messages=messages, max_tokens=16, stream=True))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


@contextmanager
def prometheus(urls: Mapping[str, str], scratch: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes these."""
    scratch.mkdir()
    deployed = ROOT / "deploy" / "prometheus"
    shutil.copy(deployed / "alerts.yml", scratch)
    config = (deployed / "prometheus.yml").read_text().replace("15s", f"{SCRAPE_S}s")
    for port, name in ((8002, "metrics"), (8003, "health"), (8080, "openai")):
        config = config.replace(f"127.0.0.1:{port}", urlsplit(urls[name]).netloc)
    (scratch / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={scratch / 'prometheus.yml'}",
        f"--storage.tsdb.path={scratch / 'data'}",
        f"--web.listen-address={urlsplit(url).netloc}",
        "--log.level=warn",
    ]
    with subprocess.Popen(command) as process:
        try:
            while not _is_ready(url):
                if process.poll() is not None:
                    raise RuntimeError(f"prometheus ended with status {process.returncode}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def values_of(
    url: str, panel: Panel, start: float, end: float
) -> dict[str, list[tuple[float, float]]]:
    """The lines of a panel: seconds since the start, and values, by legend."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for legend, query in panel.queries.items():
        plain = without_variables(query, {**VARIABLES, "$__rate_interval": WINDOW})
        span = {"start": start, "end": end, "step": SCRAPE_S}
        for one in ask(url, "query_range", query=plain, **span):
            name = legend
            for label, value in {**one["metric"], "instance": ""}.items():  # there is one server
                name = name.replace(f"{{{{{label}}}}}", value)
            lines[name.removesuffix(", ")] = [
                (at - start, float(value)) for at, value in one["values"]
            ]
    return lines


def ask(url: str, what: str, **parameters: Any) -> list[Any]:
    """The result of a query to Prometheus' HTTP API."""
    with urllib.request.urlopen(f"{url}/api/v1/{what}?{urlencode(parameters)}") as response:
        answer = json.load(response)
    return list(answer["data"]["result"])


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready") as response:
            return int(response.status) == 200
    except OSError:  # also an HTTP status that is no success
        return False
