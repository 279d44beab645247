"""Figures as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from iblip.serving.bench.figures import PERCENTILES, Figures
from iblip.serving.bench.loads import Closed
from iblip.serving.bench.searching import Search, rate_of


def lines_of(figures: Figures) -> Iterator[str]:
    """What came of a run."""
    data, load = figures.to_json(), figures.run.load
    how = f"{load.concurrency} at once" if isinstance(load, Closed) else f"{load.rate:.4g} a second"
    yield (
        f"{data['requests']} requests, {how}, in {figures.run.seconds:.1f} s:"
        f" {data['requests_a_second']} answers and {data['tokens_a_second']} tokens a second"
    )
    yield f"  {'milliseconds':14}" + "".join(f"{f'p{point}':>9}" for point in PERCENTILES)
    rows = {
        "first text": figures.first_s,
        "a token": figures.token_s,
        "whole answer": figures.last_s,
        "sent after": figures.sent_s,
    }
    for name, seconds in rows.items():
        cells = ("-" if s is None else f"{s * 1000:.1f}" for s in seconds.values())
        yield f"  {name:14}" + "".join(f"{cell:>9}" for cell in cells)
    if data["answered"] < data["requests"]:
        names = {"refused": "refused", "timed_out": "timed out", "failed": "failed"}
        counts = (f"{data[key]} {name}" for key, name in names.items() if data[key])
        yield f"  not answered: {', '.join(counts)}"
        yield from (f"    {fault}" for fault in data["faults"])
    if figures.objective is not None:
        yield (
            f"  within {figures.objective}: {figures.share:.1%}"
            f" (needs {figures.objective.share:.4g} of all), goodput {data['goodput']} a second"
        )


def lines_of_search(search: Search) -> Iterator[str]:
    """What was tried, and what was found."""
    yield f"  {'a second':>10}{'in the SLO':>12}{'goodput':>10}{'ttft p99':>11}{'itl p99':>10}"
    for one in sorted(search.tried, key=rate_of):
        times = (one.first_s["p99"], one.token_s["p99"])
        ttft, itl = ("-" if s is None else f"{s * 1000:.0f} ms" for s in times)
        yield (
            f"  {rate_of(one):>10.4g}{one.share:>12.1%}{one.goodput:>10.2f}{ttft:>11}{itl:>10}"
            f"  {'meets it' if one.meets else ''}".rstrip()
        )
    if search.found is None:
        lowest = min(map(rate_of, search.tried))
        twice = "" if not any(one.meets for one in search.tried) else " twice"
        yield f"no rate meets the SLO{twice}, down to {lowest:.4g} a second"
    else:
        bound = "" if search.is_bounded else ", the highest that was tried; tighten the SLO"
        yield f"highest rate that meets the SLO: {search.rate:.4g} a second{bound}"
        yield from lines_of(search.found)
