"""Downloads a checkpoint of the Hugging Face hub into the hub's own cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iblip.export.checkpoint.safetensors import MAX_HEADER, tensors_from_stream
from iblip.export.dequantisation.methods import OWN_FILES
from iblip.export.errors import CheckpointError
from iblip.export.progress import Advance, Progress
from iblip.export.weights.weight import Weight

SMALL = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",  # of an adapter; as a model it is then refused by name
    *OWN_FILES,
    "preprocessor_config.json",
    "processor_config.json",
    "qformer_tokenizer/*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.jinja",
)
"""Patterns of the files with config, processor and tokenizers."""


def _patterns(safe: str, pickled: str) -> tuple[tuple[str, ...], ...]:
    """The names that a file of weights and its shards may have, by form."""
    return tuple(
        (f"{stem}.{kind}", f"{stem}-*-of-*.{kind}", f"{stem}.{kind}.index.json")
        for stem, kind in ((safe, "safetensors"), (pickled, "bin"))
    )


WEIGHTS = _patterns("model", "pytorch_model")
"""Patterns of weights, for each of `export.checkpoint.directory.FORMS`. Only the first form that a
model has is downloaded; those of flax, TensorFlow or ONNX never are."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What is downloaded, and how messages call it.

    Attributes:
        weights: patterns of weights, as `WEIGHTS`.
        flag: of the command line, that named it.
        revision: how that gives a revision.
    """

    weights: Sequence[tuple[str, ...]]
    flag: str
    revision: str


MODEL = Contents(weights=WEIGHTS, flag="--model", revision="--revision")
ADAPTER = Contents(
    weights=_patterns("adapter_model", "adapter_model"), flag="--adapter", revision="@REVISION"
)


@dataclass(frozen=True, kw_only=True)
class HubSnapshot:
    """A model of the hub, as it was at one commit.

    Attributes:
        directory: in the hub's cache, with everything that `export.checkpoint.checkpoint` reads.
        commit: hash of the commit.
        pieces: tensors of weights files that were not downloaded, by the file's name; each will lie
            in `directory`.
    """

    directory: Path
    commit: str
    pieces: Mapping[str, Mapping[str, Weight]] = field(default_factory=dict)


def directory_from_hub(
    model: str,
    revision: str | None,
    progress: Progress,
    *,
    endpoint: str | None = None,
    cache: Path | None = None,
    weights: bool = True,
    contents: Contents = MODEL,
) -> HubSnapshot:
    """Downloads what is not in the cache yet. `HF_HUB_OFFLINE`, `HF_TOKEN` and so on are respected.

    If a connection breaks, its file is resumed; a download that is started again keeps the files
    that are complete.

    Args:
        model: `ORG/NAME`.
        revision: branch, tag or commit; `None` is the main branch.
        progress: reports each file of weights.
        endpoint, cache: as in `huggingface_hub`; `None` follows the environment.
        weights: whether to download weights. Otherwise only the headers of safetensors files are
            read, a few hundred kB; weights in another format are downloaded all the same.
        contents: `MODEL` or `ADAPTER`.

    Raises:
        CheckpointError: there is no such model or revision, it may not be read, the hub cannot be
            reached and the cache does not have it, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    where: dict[str, Any] = {"repo_id": model, "endpoint": endpoint, "cache_dir": cache}
    pieces: dict[str, Mapping[str, Weight]] = {}
    with _translated_errors(model, revision, endpoint, contents):
        where["tqdm_class"] = _bar(lambda amount: None)
        small = snapshot_download(revision=revision, allow_patterns=list(SMALL), **where)
        directory = Path(small)
        progress.note(f"hub: {model} at commit {directory.name[:12]}")
        for patterns in contents.weights:
            at = {**where, "revision": directory.name}
            pieces = _fetch(at, patterns, progress, directory, weights)
            if pieces or any(path for pattern in patterns for path in directory.glob(pattern)):
                break
    return HubSnapshot(directory=directory, commit=directory.name, pieces=pieces)


def _fetch(
    where: dict[str, Any],
    patterns: Sequence[str],
    progress: Progress,
    directory: Path,
    weights: bool,
) -> dict[str, Mapping[str, Weight]]:
    """Downloads the files that match `patterns`, each as a stage.

    Returns:
        The tensors of safetensors files, which are not downloaded unless `weights`.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import DryRunError

    try:
        files = snapshot_download(allow_patterns=list(patterns), dry_run=True, **where)
    except DryRunError:  # no network, or none is wanted: what the cache has, if that is all
        snapshot_download(allow_patterns=list(patterns), **where)
        return {}
    pieces: dict[str, Mapping[str, Weight]] = {}
    for file in sorted(files, key=lambda file: file.filename):
        if file.is_cached:
            continue
        if not weights and file.filename.endswith(".safetensors"):
            with progress.stage(f"read the header of {file.filename}"):
                target = directory / file.filename
                pieces[file.filename] = _read_header(where, target, file.file_size)
            continue
        with progress.stage(f"download {file.filename}", file.file_size or None, "B") as advance:
            hf_hub_download(filename=file.filename, **{**where, "tqdm_class": _bar(advance)})
    return pieces


def _read_header(where: Mapping[str, Any], file: Path, size: int) -> Mapping[str, Weight]:
    """The tensors of a safetensors file of the hub; no more than its header is received.

    Args:
        where: repository, revision and endpoint.
        file: where a download would put it.
        size: of the file, in bytes.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = hf_hub_url(
        where["repo_id"], file.name, revision=where["revision"], endpoint=where["endpoint"]
    )
    headers = build_hf_headers() | {"Range": f"bytes=0-{MAX_HEADER + 7}"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        return tensors_from_stream(_Stream(response.iter_bytes(CHUNK)), file, size)


CHUNK = 2**16
"""Bytes of a file's header that are received at once."""


class _Stream:
    """A file's bytes as they arrive; `read` waits for no more of them than it returns."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held = chunks, b""

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, or all there are if they are fewer."""
        while len(self._held) < size and (chunk := next(self._chunks, b"")):
            self._held += chunk
        taken, self._held = self._held[:size], self._held[size:]
        return taken


def _bar(advance: Advance) -> Any:
    """Returns a progress bar for the hub's client that calls `advance` instead of drawing."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            advance(int(kwargs.get("initial") or 0))

        def update(self, n: float | None = 1) -> bool | None:
            advance(int(n or 0))
            return None

    return Bar


@contextlib.contextmanager
def _translated_errors(
    model: str, revision: str | None, endpoint: str | None, contents: Contents
) -> Iterator[None]:
    """Raises the errors of the hub's client as CheckpointError, in terms of the command line."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    page = f"{endpoint or constants.ENDPOINT}/{model}"
    local = f"or give {contents.flag} a directory that has been downloaded elsewhere"
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{model} is gated: its owners ask for a licence to be accepted first. Do so at {page},"
            f" then log in (`hf auth login`, or HF_TOKEN), {local}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no directory {model} here, and no such model at {page}. Check the spelling;"
            f" if the model is private, log in (`hf auth login`, or HF_TOKEN), {local}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{model} has no revision {revision!r}. Its branches and tags are listed at"
            f" {page}/tree/main; without {contents.revision} the main branch is taken."
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"there is no directory {model}, and a model of the hub cannot be called so: {error}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(_not_cached(model, revision, page, local, error)) from error
    except (OSError, HTTPError) as error:
        raise CheckpointError(_interrupted(model, page, error)) from error


def _not_cached(model: str, revision: str | None, page: str, local: str, error: Exception) -> str:
    from huggingface_hub import constants

    at = f" at revision {revision}" if revision else ""
    if constants.is_offline_mode():
        return (
            f"HF_HUB_OFFLINE is set, and the hub's cache does not have all of {model}{at}. Unset"
            f" it once (`hf download {model}` fills the cache), {local}."
        )
    return (
        f"there is no directory {model} here, the hub's cache does not have all of"
        f" {model}{at}, and {page} cannot be reached ({_cause(error)}). Check the network, {local}."
    )


def _interrupted(model: str, page: str, error: Exception) -> str:
    return (
        f"the download of {model} from {page} broke off ({_cause(error)}). Run the command again:"
        " files that are whole are not downloaded twice."
    )


def _cause(error: BaseException) -> str:
    """Returns the message of the innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
