"""The rules as a page: `docs/lint.md`, which `iblip lint --rules` prints."""

from __future__ import annotations

from iblip.serving.lint.rule import Rule
from iblip.serving.lint.rules import RULES

HEAD = """\
# Check a model repository

`iblip lint DIR` reads a build, or any folder of Triton models, and reports what is wrong with it
before a server loads it: which file, which line, why it matters and what to do. It starts nothing
and needs no GPU.

```sh
iblip lint build/demo
iblip lint build/demo --json
iblip lint build/demo --container 26.07-py3
```

- **error**: a model does not load, or does not do what the config says. The exit status is 1.
- **warning**: the model works, but not as it appears to. The exit status is 1 with `--strict`.
- **note**: it depends on the server. Notes never fail.

The rules are those of the server on PyPI, unless `--container` names one of NVIDIA's. The exit
status is 2 if the command was called wrongly.

"Triton 2.51" says what that server does with a repository that breaks the rule, as tested by
`tests/serving/lint/test_broken_repositories.py`. It refuses many configs with the message "failed
to read text proto", without a line. Rules about plans are not tested in this way, because that
needs a container with a GPU.

`iblip lint --rules` prints this page.
"""


def rules_page() -> str:
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
