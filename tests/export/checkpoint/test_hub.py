"""Models of the hub, downloaded from a server that speaks as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from iblip.export.checkpoint.checkpoint import checkpoint_from_directory
from iblip.export.checkpoint.hub import ADAPTER, HubSnapshot, directory_from_hub
from iblip.export.checkpoint.source import ModelSource
from iblip.export.errors import CheckpointError
from iblip.export.opening import checkpoint_from_source
from iblip.export.progress import Silent
from iblip.serving.cli.progress import Terminal

PIECE = 2**14
"""Bytes that the server writes at once."""

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has, and what has been asked of it.

    Attributes:
        files: of its one model, by name.
        model: `ORG/NAME`.
        gated: nobody may read it.
        cut: names of files whose connection breaks half way, once each.
        served: name and first byte of every file that was sent.
        sent: bytes of each file that left the server, in whole pieces.
        url: of the server.
    """

    files: Mapping[str, bytes]
    model: str = "acme/tiny"
    gated: bool = False
    cut: set[str] = field(default_factory=set)
    served: list[tuple[str, int]] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serves `hub` on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has seen enough
            super().handle()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        if found is None or found[1] != self.hub.model:
            self._error(404, "RepoNotFound")
        elif self.hub.gated:
            self._error(403, "GatedRepo")
        elif (api[3] if api else found[2]) not in {"main", COMMIT}:
            self._error(404, "RevisionNotFound")
        elif api:
            self._json(self._tree() if api[2] == "tree" else self._info())
        elif found[3] not in self.hub.files:
            self._error(404, "EntryNotFound")
        else:
            self._file(found[3])

    def _info(self) -> dict[str, Any]:
        names = [{"rfilename": name} for name in self.hub.files]
        return {"id": self.hub.model, "sha": COMMIT, "siblings": names}

    def _tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
            for name, data in self.hub.files.items()
        ]

    def _file(self, name: str) -> None:
        data = self.hub.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        end = int(asked[2]) + 1 if asked and asked[2] else len(data)
        end = min(end, len(data))
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{_digest(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(end - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.served.append((name, first))
        if name in self.hub.cut:
            self.hub.cut.remove(name)
            self.wfile.write(data[first : len(data) // 2])
            self.close_connection = True
            return
        for start in range(first, end, PIECE):
            self.wfile.write(data[start : min(start + PIECE, end)])
            self.hub.sent[name] = self.hub.sent.get(name, 0) + PIECE

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


OTHERS = {
    "README.md": b"a tiny model",
    "pytorch_model.bin": b"the same weights again",
    "flax_model.msgpack": b"and again",
    "model.fp16.safetensors": b"and again",
    "onnx/model.onnx": b"and again",
}
"""What lies beside a checkpoint's own files on the hub, and is not for us."""


@pytest.fixture
def hub(tiny: Callable[[str], Path]) -> Iterator[Hub]:
    """A server with the tiny LLaMA."""
    directory = tiny("vicuna")
    files = {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }
    with serving(Hub(files=files | OTHERS)) as server:
        yield server


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Callable[..., HubSnapshot]:
    """`directory_from_hub` of the server, with a cache of the test's own."""

    def call(model: str = hub.model, revision: str | None = None) -> HubSnapshot:
        cache = tmp_path / "cache"
        return directory_from_hub(model, revision, Terminal(), endpoint=hub.url, cache=cache)

    return call


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_HUB_OFFLINE=1 sets when the client is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_what_a_checkpoint_needs_is_downloaded_and_nothing_else(
    hub: Hub,
    fetch: Callable[..., HubSnapshot],
    tiny: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = fetch()
    assert found.commit == found.directory.name == COMMIT
    assert {name for name, _ in hub.served} == set(hub.files) - set(OTHERS)
    tensors = checkpoint_from_directory(found.directory).tensors
    for name, tensor in checkpoint_from_directory(tiny("vicuna")).tensors.items():
        assert (tensors[name].read() == tensor.read()).all()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"hub: acme/tiny at commit {COMMIT[:12]}"
    assert lines[1].startswith("  download model.safetensors (")


def big(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files, with weights so large that the server cannot send them unnoticed."""
    data = files["model.safetensors"]
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    end = len(data) - 8 - size
    header["unused"] = {"dtype": "U8", "shape": [64 << 20], "data_offsets": [end, end + (64 << 20)]}
    text = json.dumps(header).encode()
    whole = len(text).to_bytes(8, "little") + text + data[8 + size :] + bytes(64 << 20)
    return {**files, "model.safetensors": whole}


def test_without_weights_only_headers_are_received(hub: Hub, tmp_path: Path) -> None:
    hub.files = big(hub.files)
    get = partial(directory_from_hub, hub.model, None, endpoint=hub.url, cache=tmp_path)
    found = get(Silent(), weights=False)
    assert not (found.directory / "model.safetensors").exists()
    # What the system's buffers between server and client hold is sent, but not received.
    assert hub.sent["model.safetensors"] < 16 << 20 < len(hub.files["model.safetensors"])
    told = checkpoint_from_directory(found.directory, found.pieces).tensors
    whole = get(Silent())
    assert whole.pieces == {}
    assert checkpoint_from_directory(whole.directory).tensors == told
    assert get(Silent(), weights=False).pieces == {}  # the cache has them


def test_a_header_that_does_not_fit_the_file_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files = {**hub.files, "model.safetensors": hub.files["model.safetensors"][:-1]}
    with pytest.raises(CheckpointError, match="bytes, but its header describes"):
        directory_from_hub(
            hub.model, None, Silent(), endpoint=hub.url, cache=tmp_path, weights=False
        )


def test_a_dry_run_downloads_no_weights(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "iblip", "build", "--model", hub.model, "--dry-run", "--json"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    plan = json.loads(done.stdout)
    assert plan["downloaded"] == len(hub.files["model.safetensors"])
    assert plan["disk"]["linked"] > 0
    assert "read the header of model.safetensors" in done.stderr
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_source_keeps_the_commit_and_opens_it_again_without_network(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    download = partial(directory_from_hub, endpoint=hub.url)  # read when the client was imported
    monkeypatch.setattr("iblip.export.checkpoint.hub.directory_from_hub", download)
    checkpoint = checkpoint_from_source(ModelSource(model="acme/tiny"), Silent())
    assert checkpoint.name == "tiny"
    assert checkpoint.source == ModelSource(model="acme/tiny", revision=COMMIT)
    offline(monkeypatch)
    again = ModelSource.from_json(checkpoint.source.to_json())
    assert checkpoint_from_source(again, Silent()).digests() == checkpoint.digests()


def test_bin_is_downloaded_where_there_are_no_safetensors(
    hub: Hub, fetch: Callable[..., HubSnapshot]
) -> None:
    hub.files = {n: data for n, data in hub.files.items() if not n.endswith(".safetensors")}
    assert (fetch().directory / "pytorch_model.bin").read_bytes() == OTHERS["pytorch_model.bin"]


def test_a_broken_connection_is_taken_up_where_it_ended(
    hub: Hub, fetch: Callable[..., HubSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = 2**16  # bytes: the client keeps whole pieces, of 10 MB where it is not told otherwise
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece)
    hub.cut = {"model.safetensors"}
    weights = (fetch().directory / "model.safetensors").read_bytes()
    assert weights == hub.files["model.safetensors"]
    starts = [first for name, first in hub.served if name == "model.safetensors"]
    assert starts == [0, len(weights) // 2 // piece * piece]


def test_a_second_time_nothing_is_downloaded_and_no_network_is_needed(
    hub: Hub, fetch: Callable[..., HubSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch()
    hub.served.clear()
    assert fetch() == first
    offline(monkeypatch)
    assert fetch() == fetch(revision=COMMIT) == first
    assert hub.served == []


def test_offline_with_half_a_cache_says_what_to_do(
    fetch: Callable[..., HubSnapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fetch().directory / "model.safetensors").unlink()
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, and the hub's cache does"):
        fetch()


def test_a_gated_model_is_explained(hub: Hub, fetch: Callable[..., HubSnapshot]) -> None:
    hub.gated = True
    message = f"acme/tiny is gated: .* accepted first. Do so at {hub.url}/acme/tiny, .*hf auth"
    with pytest.raises(CheckpointError, match=message):
        fetch()


def test_an_unknown_model_and_revision_are_told(
    hub: Hub, fetch: Callable[..., HubSnapshot]
) -> None:
    with pytest.raises(CheckpointError, match="no directory acme/tyni here, and no such model"):
        fetch("acme/tyni")
    with pytest.raises(CheckpointError, match="acme/tiny has no revision 'v9'"):
        fetch(revision="v9")
    with pytest.raises(CheckpointError, match="cannot be called so"):
        fetch("acme/ti ny")


def test_no_network_and_nothing_in_the_cache(tmp_path: Path) -> None:
    with serving(Hub(files={})) as gone:
        pass
    message = "the hub's cache does not have all of acme/tiny, and .* cannot be reached"
    with pytest.raises(CheckpointError, match=message):
        directory_from_hub("acme/tiny", None, Terminal(), endpoint=gone.url, cache=tmp_path)


def test_the_command_asks_the_hub_of_the_environment(hub: Hub, tmp_path: Path) -> None:
    hub.gated = True
    command = [sys.executable, "-m", "iblip", "build", "--model", hub.model]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: acme/tiny is gated: its owners ask")
    assert list((tmp_path / "here").iterdir()) == []


@pytest.fixture
def adapter_hub(tiny: Callable[[str], Path], tmp_path: Path) -> Iterator[Hub]:
    """A server with a LoRA of the tiny LLaMA, and what a training run leaves beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import InstructBlipForConditionalGeneration

    model = InstructBlipForConditionalGeneration.from_pretrained(tiny("vicuna"))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    others = {"optimizer.pt": b"of training", "adapter_model.bin": b"the same weights again"}
    with serving(Hub(files=files | others)) as server:
        yield server


def test_of_an_adapter_a_dry_run_downloads_no_weights_and_a_build_those_alone(
    adapter_hub: Hub, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    weights = "adapter_model.safetensors"
    asked = ["--model", str(tiny("vicuna")), "--adapter", f"acme/tiny@{COMMIT}"]
    command = [sys.executable, "-m", "iblip", "build", *asked, "--dry-run", "--json"]
    cache = tmp_path / "cache"
    environment = {**os.environ, "HF_ENDPOINT": adapter_hub.url, "HF_HUB_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["downloaded"] == len(adapter_hub.files[weights])
    get = partial(directory_from_hub, "acme/tiny", None, Silent(), contents=ADAPTER)
    found = get(endpoint=adapter_hub.url, cache=cache)
    names = {path.name for path in found.directory.iterdir()}
    assert names == {"adapter_config.json", weights}


def test_an_adapter_that_is_not_on_the_hub_is_told_in_its_own_words(
    adapter_hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="or give --adapter a directory") as caught:
        directory_from_hub(
            "acme/none", None, Silent(), endpoint=adapter_hub.url, cache=tmp_path, contents=ADAPTER
        )
    assert "acme/none" in str(caught.value)
