"""An answer as a notebook shows it: HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def html_from_answer(
    texts: Sequence[str], facts: Sequence[str], ranking: Sequence[tuple[str, float]]
) -> str:
    """The texts, a line of facts below them, and the candidates of a ranking as a table.

    Args:
        texts: one, or several where several were asked for.
        facts: short texts.
        ranking: each candidate and its log-probability in nats, the most likely first.
    """
    body = "".join(f'<p style="white-space:pre-wrap">{escape(text)}</p>' for text in texts)
    if ranking:
        rows = "".join(
            f'<tr><td style="text-align:left">{escape(text)}</td><td>{logprob:.3f}</td></tr>'
            for text, logprob in ranking
        )
        body = f"<table><tr><th>candidate</th><th>log-probability</th></tr>{rows}</table>"
    return f"<div>{body}<small>{escape(', '.join(facts))}</small></div>"
