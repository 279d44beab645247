"""Refuses words that made this project hard to read, and says what to write instead.

    python -m tests.docs.style

The pages were exact and not idiomatic: private words, unusual verbs, fragments. Each row below is a
habit that was taken out of them. `EVERYWHERE` holds for pages, docstrings and messages, `PAGES` for
pages alone. Code in backticks and in fences is not looked at.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EVERYWHERE: Mapping[str, str] = {
    r"pictures?": "image: one word for one thing",
    r"whole numbers?": "integer: the field's word",
    r"held (?:to|against)": "must satisfy, is compared with, is checked against",
    r"the (?:\w+ )?road": "path, code path, entry point",
    r"errs? most": "have the largest error",
    r"twins?": "counterpart, version",
    r"likeliest": "most likely",
    r"mends|mended|mending|to mend": "fix, repair",
    r"thrice|aught|hence(?:forth)|thereof|whereof": "plain words",
    r"is so made|is it so": "a subject first: the design is …",
    r"tell(?:s)? of": "report, describe",
    r"knows? nothing but": "knows only",
}
"""Pattern to what to write instead, in pages, docstrings and messages."""

PAGES: Mapping[str, str] = {
    r"rooms?(?! (?:for|on|is))": "folder",
    r"kept": "stored, cached, unchanged, remains",
    r"wants|wanted": "needs, requires, expects",
    r"(?:is|are|was|were|be|been) told": "is reported, is listed, learns",
    r"products?(?!ion)": "matmul",
    r"anew": "again, from scratch",
    r"all else": "everything else",
    r"besides": "in addition, also",
    r"can(?:not)? be had": "is (not) available",
    r"in turns": "alternating",
    r"stands? in": "is in, replaces",
    r"l(?:ies|ie|ay) (?:in|on|beside|where|anywhere)": "is in, is stored in",
    r"(?:given|give|gives) back": "returned, freed",
    r"(?<!by )hand(?:s|ed|ing)? (?:on|over)": "pass",
    r"so many": "that many, the number of",
    r"such as will": "like those that you will",
    r"take such": "use …",
    r"says? the same": "gives the same answer",
    r"is gone|are gone": "has been removed, has ended",
    r"made so|do so too": "a subject first",
    r"of a form": "in a format",
    r"that is no|that are no|is no (?:part|property)": "that is not a",
    r"nothing of": "no part of, nothing in",
    r"of it(?=[,.;)])": "of this",
    r"where there is (?:one|none)": "if there is (one, none)",
}
"""The same for pages: docs/, README.md, CONTRIBUTING.md, SECURITY.md."""

FILLERS = re.compile(
    r"(?:none|see above|so many\b.*|of (?:its|the|a|all|each|their) [\w ]{0,24}|as above|likewise|"
    r"those that go|its version)\.",
    re.IGNORECASE,
)
"""Docstrings that say nothing: better none, or what it is."""

OUTSIDE = re.compile(r"^ *```.*?^ *```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.MULTILINE | re.DOTALL)
"""What is not English: code and addresses."""

ALLOWED = {"What is in the picture?"}
"""Texts of the code that are no English of ours: a prompt for a model."""

CODE = ("iblip/*.py", "export/*.py", "engines/*.py", "serving/*.py", "model_repository/*.py")
DOCS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/*.md")


def tracked(*patterns: str) -> list[str]:
    """Files of the repository, by patterns of git, links left out."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = (name for name in listed.stdout.split("\0") if name)
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def faults_of_text(text: str, refused: Mapping[str, str]) -> Iterator[tuple[int, str, str]]:
    """The line, the words and the advice for each refused pattern."""
    plain = OUTSIDE.sub(lambda match: "`" + "\n" * match.group().count("\n"), text)
    for pattern, instead in refused.items():
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", plain, re.IGNORECASE):
            yield plain.count("\n", 0, match.start()) + 1, match.group(), instead


def faults_of_page(path: str) -> Iterator[str]:
    """The faults of a page; records of decisions are history, and may have old words."""
    refused = dict(EVERYWHERE) if "decisions/" in path else {**EVERYWHERE, **PAGES}
    text = (ROOT / path).read_text(encoding="utf-8")
    for line, words, instead in faults_of_text(text, refused):
        yield f"{path}:{line}: “{words}”: {instead}"


def faults_of_module(path: str) -> Iterator[str]:
    """The faults of a module's docstrings and messages."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value in ALLOWED:
                continue
            for line, words, instead in faults_of_text(node.value, EVERYWHERE):
                yield f"{path}:{node.lineno + line - 1}: “{words}”: {instead}"
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring is not None and FILLERS.fullmatch(docstring):
                yield f"{path}:{node.body[0].lineno}: “{docstring}”: say what it is"


def faults() -> Iterator[str]:
    """Every fault of the repository."""
    for path in tracked(*DOCS):
        yield from faults_of_page(path)
    for path in tracked(*CODE):
        yield from faults_of_module(path)


if __name__ == "__main__":
    found = list(faults())
    print(*found, sep="\n" if found else "")
    sys.exit(1 if found else 0)
