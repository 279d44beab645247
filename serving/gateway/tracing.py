"""The trace that a request belongs to: W3C's `traceparent`, passed on to Triton.

Where OpenTelemetry's API is installed, a request is a span of its own, which its SDK exports as the
environment says (`opentelemetry-instrument iblip gateway …`). Without it, or without an SDK, the
caller's own `traceparent` goes on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from starlette.types import Scope

try:
    from opentelemetry import propagate, trace
except ImportError:
    trace = None  # type: ignore[assignment]

NAME = "iblip.gateway"

_HEADERS = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "tracestate": re.compile(r"[!-~ ]{1,512}"),
}
"""What is passed on, and only where it looks like this."""

_CURRENT: ContextVar[Mapping[str, str] | None] = ContextVar("iblip-trace", default=None)


def trace_headers() -> Mapping[str, str]:
    """The trace of the request that is being answered, as headers of a call to Triton."""
    return _CURRENT.get() or {}


@contextmanager
def traced(scope: Scope) -> Iterator[str]:
    """Makes a request's trace the one of all calls until the block ends; yields its id, if any."""
    given = {
        name: value
        for name, value in ((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"])
        if name in _HEADERS and _HEADERS[name].fullmatch(value)
    }
    if trace is None:
        with _carrying(given) as identifier:
            yield identifier
        return
    tracer, parent = trace.get_tracer(NAME), propagate.extract(given)
    kind: Any = trace.SpanKind.SERVER
    with tracer.start_as_current_span(scope["path"], context=parent, kind=kind):
        headers: dict[str, str] = {}
        propagate.inject(headers)
        with _carrying({name: headers[name] for name in headers if name in _HEADERS}) as identifier:
            yield identifier


@contextmanager
def _carrying(headers: Mapping[str, str]) -> Iterator[str]:
    token = _CURRENT.set(headers)
    try:
        yield headers.get("traceparent", "--").split("-")[1]
    finally:
        _CURRENT.reset(token)
