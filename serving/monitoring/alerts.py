"""What is worth recording, and what is worth waking somebody for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from iblip.serving.monitoring.queries import quantile
from iblip.serving.steps.metrics import FAMILIES

WINDOW = "5m"
"""Over which rates and quantiles are taken."""

FIRST_TOKEN_S = 5
"""Seconds until the first token that are too long for one request in twenty."""

ERRORS = 0.05
"""Share of requests that may fail."""

MEMORY = 0.92
"""Share of the host's memory that may be used."""

SERVER = "instance, model"
"""The labels of a server's series."""


def _share(part: str, whole: str, by: str) -> str:
    """The share of one counter's growth in another's."""
    return f"sum by ({by}) (rate({part}[{WINDOW}])) / sum by ({by}) (rate({whole}[{WINDOW}]))"


FIRST_TOKEN = "instance:iblip_time_to_first_token_seconds:p95_5m"
SERVER_ERRORS = "instance:iblip_request_errors:ratio_5m"
GATEWAY_ERRORS = "instance:iblip_gateway_errors:ratio_5m"

RECORDED: Mapping[str, str] = {
    f"instance:{name}:p{100 * share:g}_5m": quantile(share, name, by=f"le, {SERVER}", window=WINDOW)
    for name, family in FAMILIES.items()
    if family.kind == "histogram" and name.endswith("_seconds")
    for share in (0.5, 0.95)
} | {
    SERVER_ERRORS: _share(
        'iblip_requests_total{reason=~"failed|late"}',
        'iblip_requests_total{reason!~"cancelled|invalid|refused"}',
        SERVER,
    ),
    GATEWAY_ERRORS: _share(
        'iblip_gateway_responses_total{status=~"5.."}',
        'iblip_gateway_responses_total{status!~"4.."}',
        "instance",
    ),
}
"""Queries of recording rules, by the name of what they record."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """A condition that somebody should know of.

    Attributes:
        when: the condition in PromQL.
        lasting: how long it must hold, in Prometheus' notation.
        severity: `critical` if callers get no answers, `warning` if they soon may not.
        summary: what is wrong, in one sentence.
        steps: what to do, first things first.
    """

    when: str
    lasting: str
    severity: Literal["critical", "warning"]
    summary: str
    steps: tuple[str, ...]


ALERTS: Mapping[str, Alert] = {
    "IblipServerDown": Alert(
        when='up{job=~"iblip.*"} == 0',
        lasting="1m",
        severity="critical",
        summary="Prometheus cannot read the metrics of a server, its supervisor or its gateway.",
        steps=(
            "If only Triton's port (8002) is down, its supervisor is restarting it: go to "
            "[IblipNotReady](#iblipnotready).",
            "Otherwise look whether `iblip serve` still runs (`systemctl status`, `docker ps`), "
            "and read the end of its log. It ends with status 1 after too many restarts in a row, "
            "and the log has the reason.",
            "If it runs, Prometheus cannot reach it: check addresses, ports and firewall. With "
            "TLS, Triton's metrics are on 127.0.0.1 alone ([security](security.md#who-may-ask)).",
        ),
    ),
    "IblipNotReady": Alert(
        when="iblip_server_ready == 0 and iblip_server_started == 1",
        lasting="1m",
        severity="critical",
        summary="A server that has been ready no longer answers, and is being restarted.",
        steps=(
            "Ask `/health/ready` at the supervisor's port (8003) for the reason.",
            "Read the server's log (`--log FILE`): it has the last words of the process that died.",
            "A large model takes minutes to load again. If it does not come back, run "
            "`iblip doctor BUILD` on that machine.",
        ),
    ),
    "IblipStartsSlowly": Alert(
        when="iblip_server_started == 0",
        lasting="15m",
        severity="critical",
        summary="A server has not become ready since it was started.",
        steps=(
            "Read the server's log. ONNX Runtime's TensorRT providers compile at the first start, "
            "which takes minutes, unless their cache is on a volume.",
            "Compare the memory of the machine with the plan of `iblip build --dry-run`.",
            "If loading takes this long as a rule, raise `for` in `alerts.yml`.",
        ),
    ),
    "IblipRestarts": Alert(
        when=(
            "increase(iblip_server_restarts_total[15m]) > 0 "
            "or changes(iblip_server_started[15m]) > 1"
        ),
        lasting="0m",
        severity="warning",
        summary="A server was restarted, by its supervisor or together with it.",
        steps=(
            "Ask `/health/ready` for the reason, and look for it in "
            "[health and restarts](operating.md#health-and-restarts).",
            "`this process can no longer use the GPU`: see "
            "[a GPU that is lost](operating.md#a-gpu-that-is-lost), and the driver's log (`dmesg`, "
            "Xid).",
            "Killed by the system: memory. Go to [IblipHostMemory](#ibliphostmemory).",
            "Does the same request come before each restart? Report it with the log.",
        ),
    ),
    "IblipRefusals": Alert(
        when=f'sum by ({SERVER}) (rate(iblip_requests_total{{reason="refused"}}[{WINDOW}])) > 0',
        lasting="5m",
        severity="critical",
        summary="The queue is full, and requests are refused.",
        steps=(
            "Look at the panel *Requests now*. If one caller sends most, limit it "
            '(`--max-caller-requests`), or have it send with `priority="bulk"`.',
            "If the traffic is real, add a server, or raise `--slots` if there is memory. A longer "
            "queue (`--queue`) only helps against bursts: it makes everybody wait longer.",
            "If the traffic is as always, answers have become slower: go to "
            "[IblipFirstTokenSlow](#iblipfirsttokenslow).",
        ),
    ),
    "IblipSlotsFull": Alert(
        when=(
            "avg_over_time(iblip_slots_used[10m]) / avg_over_time(iblip_slots[10m]) > 0.9 "
            "and avg_over_time(iblip_requests_waiting[10m]) > 1"
        ),
        lasting="10m",
        severity="warning",
        summary="The slots for keys and values are in use, and requests wait for them.",
        steps=(
            "The server is at its capacity. Compare *Queue wait* with what your callers accept.",
            "Raise `--slots` if there is memory (`iblip build --dry-run` has the plan), build with "
            "int8 or int4, or add a server.",
            "Look at *Answer tokens*: a lower `max_new_tokens` of your callers frees slots sooner.",
        ),
    ),
    "IblipFirstTokenSlow": Alert(
        when=f"{FIRST_TOKEN} > {FIRST_TOKEN_S}",
        lasting="10m",
        severity="warning",
        summary=f"One request in twenty waits for its first token for over {FIRST_TOKEN_S} s.",
        steps=(
            "Look at *Where the time goes*. Queue: go to [IblipSlotsFull](#iblipslotsfull). "
            "Prefill: look at *Request prompt tokens* for longer prompts. Neither: images wait to "
            "be decoded or encoded; look at *Images sent as files* and *Processors*.",
            "Look whether something else uses the machine's processors or GPU.",
            "If this is normal for your model, raise the threshold in `alerts.yml`.",
        ),
    ),
    "IblipErrors": Alert(
        when=f"{SERVER_ERRORS} > {ERRORS:g}",
        lasting="5m",
        severity="critical",
        summary=f"More than {100 * ERRORS:g} % of requests fail or are too late.",
        steps=(
            "Look at *Requests ended*. Mostly `late`: the server is too slow for its callers' "
            "timeouts; go to [IblipFirstTokenSlow](#iblipfirsttokenslow).",
            "Mostly `failed`: the server's log has the error of each; "
            "[troubleshooting](troubleshooting.md#errors-by-class) says what it means.",
        ),
    ),
    "IblipHostMemory": Alert(
        when=f"nv_cpu_memory_used_bytes / nv_cpu_memory_total_bytes > {MEMORY:g}",
        lasting="10m",
        severity="warning",
        summary="The host's memory is nearly used up: the system may soon kill a process.",
        steps=(
            "Find the process (`ps aux --sort -rss`). If it is another program's, move that.",
            "`iblip doctor BUILD` says what the build takes. Lower `--slots`, `--max-length` or "
            "`image_cache_mib`.",
            "Callers who do not read their answers hold memory: "
            "[what nobody reads](security.md#what-nobody-reads).",
        ),
    ),
    "IblipHostMemoryGrows": Alert(
        when="predict_linear(nv_cpu_memory_used_bytes[2h], 12 * 3600) > nv_cpu_memory_total_bytes",
        lasting="1h",
        severity="warning",
        summary="If memory grows on as in the last two hours, the host runs out within half a day.",
        steps=(
            "Find the process that grows (`ps aux --sort -rss`, twice, some minutes apart).",
            "If it is the server's, report it with the log and the panels of the last day; until "
            "then restart it at a quiet time.",
        ),
    ),
    "IblipGpuMemoryGrows": Alert(
        when="predict_linear(nv_gpu_memory_used_bytes[2h], 12 * 3600) > nv_gpu_memory_total_bytes",
        lasting="1h",
        severity="warning",
        summary="If memory grows on as in the last two hours, a GPU runs out within half a day.",
        steps=(
            "The server allocates keys and values at its start, so that it should not grow: look "
            "with `nvidia-smi` for another process on the GPU.",
            "An arena of ONNX Runtime grows with the largest batch it has seen: `gpu_mem_limit` "
            "limits it ([Triton's own backends](operating.md#tritons-own-backends)).",
        ),
    ),
    "IblipGatewayErrors": Alert(
        when=f"{GATEWAY_ERRORS} > {ERRORS:g}",
        lasting="5m",
        severity="critical",
        summary=f"More than {100 * ERRORS:g} % of the gateway's responses are errors (5xx).",
        steps=(
            "503: the gateway does not reach a server; look at *Ready*, and go to "
            "[IblipNotReady](#iblipnotready).",
            "504: answers are too late; go to [IblipFirstTokenSlow](#iblipfirsttokenslow).",
            "502: the gateway may not ask the server, or is of another version.",
            "500: the gateway's log has a traceback with the id of the request. Report it.",
        ),
    ),
}
"""By name."""
