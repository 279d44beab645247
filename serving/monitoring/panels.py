"""What the dashboard shows, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from iblip.serving.monitoring.queries import FILTER, TABLES, WINDOW, quantile, rate
from iblip.serving.steps.metrics import FAMILIES, RATE

Unit = Literal["s", "short", "percentunit", "bytes", "reqps", "bool_on_off"]
"""Of Grafana's units."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
        title: above it.
        queries: in PromQL, by legend.
        unit: of its axis.
        kind: of Grafana's panels.
        help: shown at its corner.
    """

    title: str
    queries: Mapping[str, str]
    unit: Unit = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    help: str = ""


def _chosen(name: str) -> str:
    return f"{name}{FILTER}"


def _per_second(name: str, *, by: str = "instance", chosen: str = FILTER) -> str:
    return f"sum by ({by}) ({rate(name + chosen)})"


def _quantiles(name: str, title: str, *, chosen: str = FILTER) -> Panel:
    in_seconds = name.endswith("_seconds")
    queries = {
        f"p{100 * share:g}": quantile(share, name, chosen=chosen, window=WINDOW)
        for share in ((0.5, 0.95, 0.99) if in_seconds else (0.95, 0.99))
    }
    if not in_seconds:  # a quantile of integers is between two bounds, their mean is exact
        total, count = (f"sum({rate(f'{name}_{part}{chosen}')})" for part in ("sum", "count"))
        queries = {"mean": f"{total} / {count}", **queries}
    unit: Unit = "s" if in_seconds else "short"
    return Panel(title=title, queries=queries, unit=unit, help=TABLES[name].help)


def _title(name: str) -> str:
    """`iblip_queue_wait_seconds` becomes `Queue wait`."""
    return name.removeprefix("iblip_").removesuffix("_seconds").replace("_", " ").capitalize()


_HISTOGRAMS = [name for name, family in FAMILIES.items() if family.kind == "histogram"]

_ENDED = rate('iblip_requests_total{instance=~"$instance",reason!="refused"}')

PANELS: Mapping[str, tuple[Panel, ...]] = {
    "State": (
        Panel(
            title="Ready",
            queries={"{{instance}}": "iblip_server_ready"},
            unit="bool_on_off",
            kind="stat",
            help="Of every supervisor; off while a server loads or is restarted",
        ),
        Panel(
            title="Started",
            queries={"{{instance}}": "iblip_server_started"},
            unit="bool_on_off",
            kind="stat",
            help="Whether the server has been ready before",
        ),
        Panel(
            title="Restarts",
            queries={"{{instance}}": "increase(iblip_server_restarts_total[$__range])"},
            kind="stat",
            help="By the supervisor, in the time that is shown",
        ),
        Panel(
            title="Slots",
            queries={
                "used, {{instance}}": _chosen("iblip_slots_used"),
                "all, {{instance}}": _chosen("iblip_slots"),
            },
        ),
        Panel(
            title="Requests now",
            queries={
                "running, {{instance}}": _chosen("iblip_requests_running"),
                "waiting, {{instance}}": _chosen("iblip_requests_waiting"),
            },
        ),
    ),
    "Traffic": (
        Panel(
            title="Requests ended",
            queries={"{{reason}}": _per_second("iblip_requests_total", by="reason")},
            unit="reqps",
            help=TABLES["iblip_requests_total"].help,
        ),
        Panel(
            title="Tokens per second",
            queries={
                "generated": f"sum({rate(_chosen('iblip_generated_tokens_total'))})",
                "generated, last 5 s": f"sum({_chosen(RATE)})",
                "read": f"sum({rate(_chosen('iblip_prompt_tokens_total'))})",
                "cached": f"sum({rate(_chosen('iblip_cached_prompt_tokens_total'))})",
            },
        ),
        Panel(
            title="Where the time goes",
            queries={
                part: f"sum({rate(_chosen(f'iblip_{part}_seconds_total'))}) / sum({_ENDED})"
                for part in ("queue", "prefill", "decode")
            },
            unit="s",
            help="Mean seconds of an ended request",
        ),
    ),
    "Latency": tuple(
        _quantiles(name, _title(name)) for name in _HISTOGRAMS if name.endswith("_seconds")
    ),
    "Lengths": tuple(
        _quantiles(name, _title(name)) for name in _HISTOGRAMS if not name.endswith("_seconds")
    ),
    "Images": (
        Panel(
            title="Images sent as files",
            queries={
                kind: f"sum({rate(_chosen(f'iblip_images_{kind}_total'))})"
                for kind in ("decoded", "remembered", "refused")
            },
            unit="reqps",
        ),
        Panel(
            title="Vision cache",
            queries={
                kind: f"sum({rate(_chosen(f'iblip_vision_cache_{kind}_total'))})"
                for kind in ("hits", "misses")
            },
            unit="reqps",
            help="Images that were found encoded on the disk, with --vision-cache",
        ),
        Panel(
            title="Files of the vision cache",
            queries={"{{instance}}": _chosen("iblip_vision_cache_bytes")},
            unit="bytes",
        ),
    ),
    "Machine": (
        Panel(
            title="Memory of the host",
            queries={
                "used, {{instance}}": _chosen("nv_cpu_memory_used_bytes"),
                "all, {{instance}}": _chosen("nv_cpu_memory_total_bytes"),
            },
            unit="bytes",
        ),
        Panel(
            title="Processors",
            queries={"{{instance}}": _chosen("nv_cpu_utilization")},
            unit="percentunit",
        ),
        Panel(
            title="Memory of GPUs",
            queries={
                "used, {{gpu_uuid}}": _chosen("nv_gpu_memory_used_bytes"),
                "all, {{gpu_uuid}}": _chosen("nv_gpu_memory_total_bytes"),
            },
            unit="bytes",
        ),
        Panel(
            title="GPUs",
            queries={"{{gpu_uuid}}": _chosen("nv_gpu_utilization")},
            unit="percentunit",
        ),
    ),
    "Gateway": (
        Panel(title="Open requests", queries={"{{instance}}": "iblip_gateway_open_requests"}),
        Panel(
            title="Responses",
            queries={
                "{{status}}": _per_second("iblip_gateway_responses_total", by="status", chosen="")
            },
            unit="reqps",
        ),
        Panel(
            title="Tokens",
            queries={"{{kind}}": _per_second("iblip_gateway_tokens_total", by="kind", chosen="")},
        ),
        _quantiles("iblip_gateway_first_text_seconds", "First text", chosen=""),
        _quantiles("iblip_gateway_answer_seconds", "Answer", chosen=""),
    ),
}
"""By row."""
