"""Every rule as a page for readers: `docs/lint.md`, which `iblip lint --rules` prints."""

from __future__ import annotations

from iblip.serving.lint.rule import Rule
from iblip.serving.lint.rules import RULES

HEAD = """\
# Checking a model repository

`iblip lint DIR` reads a build, or any folder of Triton models, and says what is wrong with it
before a server meets it: which file, which line, why it matters, what to do. It starts nothing, and
takes no GPU.

    iblip lint build/instructblip-demo-vicuna-fp32
    iblip lint /models --json
    iblip lint /models --container 26.07-py3

- **error**: a model does not load, or does not do what the config says. Exit status 1.
- **warning**: it works, and not as it looks. Exit status 1 with `--strict`.
- **note**: it depends on the server. Never fails.

The server is that from PyPI, unless `--container` names one of NVIDIA's. Exit status 2: the call
was wrong.

"Triton 2.51" says what that server did with a repository broken in that way
(`tests/serving/lint/test_broken_repositories.py` asks it each time). It refuses many configs in the
words "failed to read text proto", without a line. Only a container with a GPU could be asked about
plans.

This page is what `iblip lint --rules` prints.
"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(_section(rule) for rule in RULES.values())])


def _section(rule: Rule) -> str:
    return (
        f"## {rule.id}\n\n"
        f"{rule.title} ({rule.severity})\n\n"
        f"- Why: {rule.why}\n"
        f"- Do: {rule.mend}\n"
        f"- Triton 2.51: {rule.server}.\n"
    )
