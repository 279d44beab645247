"""Whether a build directory already is the build that is asked for, so that none has to be made.

Beside its manifest a build has `inputs.json`: all that it followed from (what was decided, code,
libraries), and a stamp of every file that it was made of or consists of. As `make` and `git` do,
files are told apart by size, time and inode; one of the source that differs in these alone is the
same if its sha256 is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from iblip.export.artifact.manifest import MANIFEST
from iblip.export.errors import CheckpointError, InputError
from iblip.export.examples import EXAMPLES, read_examples
from iblip.export.system.files import sha256
from iblip.export.system.json_text import parse_json
from iblip.export.system.toolchain import code_digest, library_versions

if TYPE_CHECKING:
    from iblip.serving.builder.settled import SettledBuild

logger = logging.getLogger(__name__)

RECORD = "inputs.json"
"""Its file in a build directory."""

FORMAT = 2
"""Of that file; another one is no record."""

PACKAGES = ("iblip.export", "iblip.engines", "iblip.serving", "iblip.model_repository")
"""Whose code a build follows from."""

SMALL = 16 * 2**20
"""Bytes: the sha256 of a source's file that is no larger is always taken."""


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What tells a file from one that was there before.

    Attributes:
        size: in bytes.
        time: of its last change, in nanoseconds since 1970.
        inode: its number in the file system.
        digest: sha256 in hexadecimal, where it has been taken.
    """

    size: int
    time: int
    inode: int
    digest: str | None = None

    @classmethod
    def of(cls, path: Path, digest: str | None = None) -> Self:
        """Of a file as it is.

        Raises:
            OSError: there is none.
        """
        found = path.stat()
        return cls(size=found.st_size, time=found.st_mtime_ns, inode=found.st_ino, digest=digest)

    def holds(self, path: Path) -> bool:
        """Whether the file at `path` still is the one that was stamped."""
        try:
            found = Stamp.of(path, self.digest)
            if found == self:
                return True
            return (
                found.size == self.size and self.digest is not None and sha256(path) == self.digest
            )
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a build follows from.

    Attributes:
        told: what was decided, libraries and code, JSON-ready, each under its name.
        sources: every file of the checkpoint, and of what else is read, by absolute path.
    """

    told: Mapping[str, Any]
    sources: Mapping[str, Stamp]

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Has a failure of the block name a source that has changed or is gone, if one has.

        Of one that vanishes, transformers, safetensors and the system say different things.

        Raises:
            CheckpointError: the block failed, and a source is not what it was.
        """
        try:
            yield
        except Exception as error:
            for path, stamp in self.sources.items():
                if not stamp.holds(Path(path)):
                    fate = "was changed" if Path(path).exists() else "is gone"
                    raise CheckpointError(
                        f"{path} {fate} since the build began; build again when nothing writes"
                        " to it"
                    ) from error
            raise

    def write(self, directory: Path, digests: Mapping[Path, str]) -> None:
        """Writes the record of a build that was made of them into its `directory`.

        Args:
            directory: holds all other files of the build.
            digests: sha256 of files of the checkpoint that were taken while it was made.
        """
        taken = {str(path): digest for path, digest in digests.items()}
        sources = {
            path: asdict(stamp) | {"digest": stamp.digest or taken.get(path)}
            for path, stamp in self.sources.items()
        }
        files = {
            str(path.relative_to(directory)): asdict(Stamp.of(path))
            for path in _list_files(directory)
        }
        record = {"format": FORMAT, "told": self.told, "sources": sources, "files": files}
        (directory / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def inputs_of(settled: SettledBuild) -> Inputs:
    """Everything that a build depends on."""
    told = {
        **_list_decisions(settled),
        **{f"the version of {name}": word for name, word in library_versions().items()},
        "the version of Python": platform.python_version(),
        "the code of this project": {"sha256": code_digest(*PACKAGES)},
    }
    return Inputs(
        told=json.loads(json.dumps(told, default=_to_plain)),
        sources={str(path): _take_stamp(path) for path in sorted(_find_sources(settled))},
    )


def _list_decisions(settled: SettledBuild) -> dict[str, Any]:
    """Everything that was decided, under the option that decides it where there is one."""
    limits, verification = settled.limits, settled.verification
    return {
        "--model": settled.source.to_json(),
        "--precision": str(settled.policy),
        "quantisation": settled.quantisations,
        "--engine": settled.engine,
        "--llm-engine": settled.engines["language_model"],
        "--triton-backend": settled.backend,
        "the setting of vLLM": settled.vllm,
        "--target": settled.plans.targets,
        "--builder-flag": settled.plans.flags,
        "--workspace": settled.plans.workspace,
        "what builds plans": _describe_plan_builder(settled),
        "--slots": limits.slots,
        "--max-length": limits.max_length,
        "--queue": limits.queue,
        "--max-images": limits.images,
        "--max-batch": limits.max_batch,
        "--max-prompt-bytes": limits.max_prompt_bytes,
        "--max-option-bytes": limits.max_option_bytes,
        "--max-logprobs": limits.max_logprobs,
        "--prefix-cache": limits.prefix_cache,
        "--max-instruction": limits.max_instruction,
        "the choice of profiles": settled.sizes,
        "--verify": verification is not None,
        "--examples": verification and verification.examples,
        "--limit": verification and verification.limit,
    }


def _to_plain(value: Any) -> Any:
    """What `json` does not know: dataclasses, paths."""
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def _describe_plan_builder(settled: SettledBuild) -> dict[str, Any]:
    """Of plans: the library's version, and the GPU that they are for where no target is named."""
    from iblip.engines.kinds import KINDS

    if not KINDS[settled.engine].plans:
        return {}
    from iblip.engines.cache.key import this_gpu
    from iblip.engines.tensorrt.libraries import find_library

    gpu = {} if settled.plans.targets else this_gpu()
    return {"version": find_library(settled.engine).version, "gpu": gpu}


def _find_sources(settled: SettledBuild) -> set[Path]:
    """Files of the checkpoint, and of what graphs are measured and answers compared on."""
    checkpoint, verification = settled.checkpoint, settled.verification
    examples = verification and verification.examples
    read = {made.calibration for made in settled.quantisations.values() if made.calibration}
    read.add(examples or checkpoint.directory / "examples")
    places = [checkpoint.directory, *settled.source.parts.values(), *checkpoint.beside, *read]
    files = {file for place in places for file in _list_files(place.absolute())}
    files |= set(checkpoint.files)
    for place in read:
        files |= {image for image in _find_images(place.absolute()) if image.exists()}
    return {path for path in files if not path.is_relative_to(settled.destination)}


def _find_images(examples: Path) -> set[Path]:
    """Those that examples name, wherever they lie; none of a file that the build will refuse."""
    if not (examples / EXAMPLES).exists():
        return set()
    try:
        return {example.image for example in read_examples(examples)}
    except InputError:
        return set()


def _list_files(place: Path) -> Iterable[Path]:
    return [place] if place.is_file() else (path for path in place.rglob("*") if path.is_file())


def _take_stamp(path: Path) -> Stamp:
    return Stamp.of(path, sha256(path) if path.stat().st_size <= SMALL else None)


def find_difference(directory: Path, inputs: Inputs) -> str | None:
    """In what the build in `directory` is not what `inputs` would give; `None` if in nothing.

    Args:
        directory: of a build.
        inputs: as from `inputs_of`.

    Returns:
        A clause for the user, such as "--max-batch is another".
    """
    try:
        record = parse_json((directory / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            return f"{RECORD} is of another version"
        return next(_find_differences(directory, record, inputs), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.info("%s cannot be read: %r", directory / RECORD, error)
        return f"it has no {RECORD} that can be read"


def _find_differences(directory: Path, record: Mapping[str, Any], inputs: Inputs) -> Iterator[str]:
    told = record["told"]
    for name in dict.fromkeys((*inputs.told, *told)):
        if told.get(name) != inputs.told.get(name):
            yield _describe_change(name, told.get(name), inputs.told.get(name))
    sources = {path: Stamp(**stamp) for path, stamp in record["sources"].items()}
    for path in sorted(inputs.sources.keys() ^ sources.keys()):
        yield f"{path} {'is new' if path in inputs.sources else 'is gone'}"
    for path, stamp in sources.items():
        if not stamp.holds(Path(path)):
            yield f"{path} has changed"
    files = {name: Stamp(**stamp) for name, stamp in record["files"].items()}
    if MANIFEST not in files:
        yield f"it has no {MANIFEST}"
    for name, stamp in files.items():
        if not stamp.holds(directory / name):
            yield f"its own {name} has changed, or is gone"


def _describe_change(name: str, was: Any, now: Any) -> str:
    if isinstance(was, str | int | None) and isinstance(now, str | int | None):
        return f"{name} is {now}, and was {was}"
    return f"{name} is another"
