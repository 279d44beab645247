"""The pages of the documentation, their blocks of code, and a reader who follows them."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.ports import free_ports

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ("docs/lint.md", "docs/alerts.md")
"""Pages that a command writes."""

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *(
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "docs").rglob("*.md"))
        if "decisions" not in path.parts
    ),
]

NEEDS = ("GPU", "hub", "container", "files", "machines", "installation")
"""What a block may say that it needs; docs/index.md explains each."""

RUN = ("sh", "bash", "python", "js", "go")
"""Languages of blocks that are run."""

PROGRAMS = {"js": "node", "go": "go"}
"""Programs without which blocks of a language are passed over."""

FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NEED = re.compile(r"\A(?:#|//) needs: (\w+)\n")
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002, "health": 8003}
OPENAI_PORT = 8080
"""Of a server whose command asks for it: pages name it there, and in addresses."""
READY_S = 120


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: its path in the repository.
        line: of its fence.
        language: as the fence says it; may be empty.
        code: without the fence and the line that says what it needs.
        needs: one of `NEEDS`, or empty if it runs anywhere.
    """

    page: str
    line: int
    language: str
    code: str
    needs: str

    @property
    def place(self) -> str:
        """Where to look."""
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block, without comments, continued lines joined."""
        joined = self.code.replace("\\\n", " ")
        lines = (re.sub(r"(^|\s+)#.*$", "", line).strip() for line in joined.splitlines())
        return [re.sub(r"\s+", " ", line) for line in lines if line]


def text_of(page: str) -> str:
    """What a page says."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(page: str) -> Iterator[Block]:
    """Every fenced block of a page, in order."""
    text = text_of(page)
    for match in FENCE.finditer(text):
        code = textwrap.dedent(match[3])
        need = NEED.match(code)
        yield Block(
            page=page,
            line=text.count("\n", 0, match.start()) + 1,
            language=match[2],
            code=code[need.end() :] if need else code,
            needs=need[1] if need else "",
        )


@dataclass
class Reader:
    """Somebody who follows a page in a directory, with a server of their own.

    Attributes:
        home: the working directory.
        ports: of the server.
        openai_port: of its gateway.
    """

    home: Path
    ports: Mapping[str, int] = field(
        default_factory=lambda: dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    )
    openai_port: int = field(default_factory=lambda: free_ports(1)[0])
    _server: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Options that pages leave at their defaults: few examples, and ports of this reader."""
        limits = {f"IBLIP_{name}_LIMIT": "8" for name in ("BUILD", "VERIFY", "PROVE")}
        ports = {f"IBLIP_SERVE_{name.upper()}_PORT": str(port) for name, port in self.ports.items()}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {
            **os.environ,
            **limits,
            **ports,
            "IBLIP_ASK_URL": f"127.0.0.1:{self.ports['grpc']}",
            "PATH": path,
            "PYTHONPATH": str(ROOT),
        }

    def follow(self, block: Block) -> str:
        """Runs a block, and returns what it prints."""
        code = self._with_ports(block.code)
        if code != block.code and self._server is None:
            self.serve("iblip serve build/demo")
        match block.language:
            case "python":
                return self._run([sys.executable, "-c", code], block)
            case "js":
                return self._run(["node", "--input-type=module", "-e", code], block)
            case "go":
                (self.home / "main.go").write_text(code, encoding="utf-8")
                return self._run(["go", "run", "main.go"], block)
            case "bash":
                return self._run(["bash", "-euc", code], block)
        return "".join(self._command(self._with_ports(line), block) for line in block.commands)

    def serve(self, command: str) -> None:
        """Starts a server, and returns as soon as it says that it is ready."""
        self.stop()
        self._server = subprocess.Popen(
            shlex.split(command),
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        for line in self._server.stdout:
            if "iblip ask" in line:
                return
        raise AssertionError(f"$ {command}: ended with {self._server.wait()}")

    def stop(self) -> None:
        """Presses Ctrl-C, and waits for the server's end."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.returncode == 0

    def _with_ports(self, code: str) -> str:
        for name, port in PORTS.items():
            code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{self.ports[name]}")
        return code.replace(f"127.0.0.1:{OPENAI_PORT}", f"127.0.0.1:{self.openai_port}")

    def _command(self, command: str, block: Block) -> str:
        port = "--openai-port "
        command = command.replace(f"{port}{OPENAI_PORT}", f"{port}{self.openai_port}")
        words = shlex.split(command)
        if words[0] == "make":
            makefile = text_of("Makefile")
            assert f"\n{words[1]}: " in makefile or f"\n{words[1]}:\n" in makefile, block.place
            return ""
        if is_server(words):
            self.serve(command)
            return ""
        if "iblip" in words[0] and words[1] == "ask" and self._server is None:
            self.serve("iblip serve build/demo")
        return self._run(["bash", "-euc", command], block)

    def _run(self, command: list[str], block: Block) -> str:
        done = subprocess.run(
            command,
            cwd=self.home,
            env=self.environment,
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.place}\n{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def is_server(words: list[str]) -> bool:
    """Whether a command runs until it is stopped."""
    return "serve" in words[:2] and not {"--print-command", "--help"} & set(words)
