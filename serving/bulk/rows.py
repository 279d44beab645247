"""What is to be asked: the images of a folder, or the rows of a file."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from iblip.export.errors import InputError, OptionError
from iblip.export.messages import kind_of, shown
from iblip.export.system.installing import MissingPackageError, missing_package
from iblip.export.system.json_text import parse_json

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""The names of images, in a folder and in a tar."""

LONGEST_FIELD = 2**31 - 1
"""Bytes of a field of CSV: as many as the smallest `long` of C counts."""

OWN = ("id", "image", "prompt", "options")
"""The fields of a row; it may have others, which are not read."""


@dataclass(frozen=True, kw_only=True)
class BulkRow:
    """One image, or several, and what is to be asked about it.

    Attributes:
        id: names the row in the output.
        image: one image, or several, as `Client.ask` takes them; files are not yet read.
        prompts: each asked in turn; empty where the row has none of its own.
        options: how to generate, where this row differs.
        fault: why it cannot be asked; `None` if it can.
    """

    id: str
    image: Any = None
    prompts: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    fault: InputError | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of an input, which may be read several times.

    Attributes:
        read: begins to read them.
        is_cheap: whether reading them reads no image, so that they can be counted first.
    """

    read: Callable[[], Iterator[BulkRow]]
    is_cheap: bool

    def __iter__(self) -> Iterator[BulkRow]:
        return self.read()


def read_rows(path: Path) -> Rows:
    """The rows of a folder or file.

    Raises:
        InputError: it is missing, or of no such kind.
        MissingPackageError: it is Parquet, and pyarrow is not installed.
    """
    if path.is_dir():
        return Rows(partial(_of_folder, path), is_cheap=True)
    if not path.is_file():
        raise InputError(f"there is no folder or file {path}")
    name = path.name.lower()
    for ending, (read, is_cheap) in KINDS.items():
        if name.endswith(ending):
            if ending == ".parquet":
                _pyarrow()
            return Rows(partial(read, path), is_cheap)
    raise InputError(f"{path} is none of {', '.join(KINDS)}, nor a folder of images")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One part of the rows: those whose `id` falls into it, wherever they are in the input.

    Attributes:
        index: from 1.
        count: of all parts.

    Raises:
        OptionError: it is none of them.
    """

    index: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise OptionError(f"the shard is {self}; expected I/N with I from 1 to N, such as 2/8")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Reads `2/8`. Raises `OptionError`."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal()):
            raise OptionError(f"shard is {shown(text)}; expected I/N, such as 2/8")
        return cls(index=int(index), count=int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def has(self, row: BulkRow) -> bool:
        """Whether a row is in this part."""
        digest = hashlib.blake2b(row.id.encode(errors="backslashreplace"), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index - 1


def _of_folder(path: Path) -> Iterator[BulkRow]:
    for folder, folders, files in os.walk(path, onerror=_refuse):
        folders.sort()
        for name in sorted(files):
            image = Path(folder, name)
            if image.suffix.lower() in SUFFIXES:
                yield BulkRow(id=image.relative_to(path).as_posix(), image=image)


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read: {error.strerror}") from error


def _of_jsonl(path: Path) -> Iterator[BulkRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"line {number}"
            try:
                fields = parse_json(line)
            except ValueError as error:
                fields = error
            yield _row(fields, place, path.parent)


def _of_csv(path: Path) -> Iterator[BulkRow]:
    csv.field_size_limit(LONGEST_FIELD)  # an image may be a `data:` address; the default is 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            if "image" not in (reader.fieldnames or ()):
                names = ", ".join(reader.fieldnames or ()) or "none"
                raise InputError(
                    f"{path} has the columns {names}; expected image, and prompt or id"
                )
            for fields in reader:
                given = {name: fields.get(name) for name in OWN if fields.get(name)}
                yield _row(given, f"line {reader.line_num}", path.parent)
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8; save it as that: {error}") from error
        except csv.Error as error:
            raise InputError(f"{path} cannot be read as CSV: {error}") from error


def _of_tar(path: Path) -> Iterator[BulkRow]:
    """The samples of a WebDataset: files that follow each other and have one name up to a dot."""
    try:
        with tarfile.open(path, "r|*") as archive:
            files = (member for member in archive if member.isfile())
            for key, members in groupby(files, lambda member: _split(member.name)[0]):
                yield _of_sample(
                    key, {_split(one.name)[1]: _content(archive, one) for one in members}
                )
    except tarfile.TarError as error:
        raise InputError(f"{path} is not a tar, or is cut off: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """The key of a file in a WebDataset, and the rest of its name in lower case."""
    folder, _, base = name.rpartition("/")
    key, _, rest = base.partition(".")
    return (f"{folder}/{key}" if folder else key), rest.lower()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _of_sample(key: str, files: Mapping[str, bytes]) -> BulkRow:
    images = [data for name, data in files.items() if f".{name.rpartition('.')[2]}" in SUFFIXES]
    fields = _parsed(files.get("json", b"{}"))
    if not isinstance(fields, dict):
        return _row(ValueError("its .json is not a JSON object"), key, None)
    given = {name: fields[name] for name in ("prompt", "options") if name in fields}
    if "prompt.txt" in files:
        given["prompt"] = files["prompt.txt"].decode(errors="replace").strip()
    if images:
        given["image"] = images if len(images) > 1 else images[0]
    return _row(given, key, None)


def _of_parquet(path: Path) -> Iterator[BulkRow]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = [name for name in OWN if name in file.schema_arrow.names]
            if "image" not in columns:
                names = ", ".join(file.schema_arrow.names)
                raise InputError(
                    f"{path} has the columns {names}; expected image, and prompt or id"
                )
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for fields in batch.to_pylist():
                    number += 1
                    given = {name: value for name, value in fields.items() if value is not None}
                    yield _row(given, f"row {number}", path.parent)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not Parquet, or is damaged: {error}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise missing_package(error, "Reading Parquet") or error from error
    except ImportError as error:  # recent ones need numpy 2, and Triton from pip numpy 1
        raise MissingPackageError(f"Parquet cannot be read here: {error}") from error
    return pyarrow


KINDS: Mapping[str, tuple[Callable[[Path], Iterator[BulkRow]], bool]] = {
    ".jsonl": (_of_jsonl, True),
    ".ndjson": (_of_jsonl, True),
    ".csv": (_of_csv, True),
    ".tsv": (_of_csv, True),
    ".tar": (_of_tar, False),
    ".tar.gz": (_of_tar, False),
    ".tgz": (_of_tar, False),
    ".parquet": (_of_parquet, False),
}
"""By the end of a file's name: what reads it, and whether that is cheap."""


def _parsed(text: str | bytes) -> Any:
    """JSON; what is wrong with it, if it is none."""
    try:
        return parse_json(text)
    except ValueError as error:
        return error


def _row(fields: Any, place: str, folder: Path | None) -> BulkRow:
    """A row of a file.

    Args:
        fields: by name; or what is wrong with the row.
        place: names the row where it has no `id`.
        folder: that paths of images begin in; `None` where images are bytes.
    """
    if not isinstance(fields, Mapping):
        fault = str(fields) if isinstance(fields, Exception) else f"it is {kind_of(fields)}"
        return BulkRow(id=place, fault=InputError(f"{place} is not a JSON object: {fault}"))
    image, row_id = fields.get("image"), fields.get("id")
    if row_id is None:
        row_id = image if isinstance(image, str) and len(image) < 1000 else place
    try:
        return BulkRow(
            id=str(row_id),
            image=_image(image, folder),
            prompts=_prompts(fields.get("prompt")),
            options=_options(fields.get("options")),
        )
    except InputError as fault:
        return BulkRow(id=str(row_id), fault=InputError(f"{place}: {fault}"))


def _image(image: Any, folder: Path | None) -> Any:
    if isinstance(image, list) and image:
        return [_image(one, folder) for one in image]
    if isinstance(image, Mapping):  # as Hugging Face's data sets write images
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes) and image:
        return image
    if isinstance(image, str) and image:
        has_scheme = image.startswith(("data:", "file:", "http://", "https://"))
        return image if has_scheme or folder is None else folder / image
    raise InputError(f"its image is {shown(image)}; expected a path, bytes, or a list of them")


def _prompts(prompt: Any) -> tuple[str, ...]:
    prompts: Iterable[Any] = prompt if isinstance(prompt, list) else [prompt]
    found = tuple(one for one in prompts if one is not None)
    if all(isinstance(one, str) for one in found):
        return found
    raise InputError(f"its prompt is {shown(prompt)}; expected a string, or a list of strings")


def _options(options: Any) -> Mapping[str, Any]:
    options = _parsed(options) if isinstance(options, str) else options
    if options is None or isinstance(options, Mapping):
        return options or {}
    raise InputError(f"its options are {shown(options)}; expected an object")


def key_of(row_id: str, prompt: str) -> bytes:
    """What tells one question from all others of a run, in a few bytes."""
    text = json.dumps([row_id, prompt])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def prompts_of(row: BulkRow, prompts: Sequence[str]) -> tuple[str, ...]:
    """What is asked about a row: its own prompts, or those of all; none if it cannot be asked."""
    return row.prompts or tuple(prompts)
