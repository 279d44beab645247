"""Makes the kit: a folder for each transfer to a GPU machine, below `.kit/`.

    make gpu-kit                                        all transfers
    python -m benchmarks.gpu.make_kit --transfer 1      one of them

A transfer carries the repository's own files too, but for the checkpoints' weights, which
`carry.sh` moves aside; what remains of the limit is the kit's. README.md says what each is for.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import click

from benchmarks.gpu.prune import prune_provider
from benchmarks.gpu.slim import slim_build
from benchmarks.gpu.true_size import strip_build
from iblip.export.system.toolchain import code_digest

REPOSITORY = Path(__file__).parents[2]

KIT = REPOSITORY / ".kit"

LIMIT = 64 << 20
"""Bytes of a transfer, the repository's own files included."""

SPARE = 512 << 10
"""Bytes that a transfer leaves free: names and folders take room too."""

LEAST = 4_000_000
"""Bytes of the smallest build, about."""

WEIGHTS = "checkpoints/*/*.safetensors"
"""Tracked files that stay behind: `carry.sh` has the same pattern."""

PYTHON = "3.12"
"""Of the GPU machine."""

PLATFORMS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 40)))
"""Wheels that it takes: pip wants each by name."""

DEMOS = (
    "instructblip-demo-vicuna",
    "instructblip-demo-flant5",
    "blip2-demo-opt",
    "minigpt4-demo",
    "blip2-demo-flant5",
    "minigpt4-demo-llama2",
)
PRECISIONS = ("fp16", "bf16", "lavis")
"""Both in the order of their worth: what does not fit is left out from the end."""

SIZED = ("instructblip-vicuna-7b", "instructblip-flan-t5-xl")
"""Models whose graphs are carried at their true size; both have ViT-g."""

ENGINE = ("--engine", "onnxruntime-cuda", "--llm-engine", "onnxruntime-cuda")

PACKAGES = ("iblip.export", "iblip.engines", "iblip.serving", "iblip.model_repository")
"""Whose code a build follows from."""

LEFT_OUT = (
    *("*/onnxruntime/tools/*", "*/onnxruntime/transformers/*", "*/onnxruntime/quantization/*"),
    *("*/onnxruntime/datasets/*", "*/libonnxruntime.so.*", "*/ThirdPartyNotices.txt"),
    *("*/libonnxruntime_providers_tensorrt.so", "*/__pycache__/*"),
)
"""Of ONNX Runtime's package: Python opens graphs without them."""

PROVIDER = Path("onnxruntime") / "capi" / "libonnxruntime_providers_cuda.so"

TRITON = ("nvidia-pytriton", "tritonclient", "python-rapidjson", "protobuf")
"""Packages of the transfer that serves: the server, and what its client needs."""


@dataclass(kw_only=True)
class Transfer:
    """The folder of one transfer, which fills up.

    Attributes:
        folder: that the GPU machine gets.
        room: bytes that it may hold.
        builds: names, in the order in which they are to be proven.
    """

    folder: Path
    room: int
    builds: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def fits(self, archive: Path) -> bool:
        """Whether there is room for a file more."""
        return self.size + archive.stat().st_size <= self.room

    def add(self, archive: Path, kind: str) -> None:
        """Puts a file into the folder `kind`: `site`, `builds` or `true_size`.

        Raises:
            SystemExit: there is no room for it.
        """
        if not self.fits(archive):
            size = self.size + archive.stat().st_size
            raise SystemExit(
                f"{archive.name} makes transfer {self.folder.name} {size:,} bytes large; it may "
                f"hold {self.room:,} beside the repository's own files"
            )
        (self.folder / kind).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(archive, self.folder / kind / archive.name)

    def add_build(self, archive: Path) -> None:
        """Puts a build into the folder, and its name at the end of the list of builds."""
        self.add(archive, "builds")
        self.builds.append(archive.name.removesuffix(".tar.xz"))
        (self.folder / "builds.txt").write_text("\n".join(self.builds) + "\n", encoding="utf-8")


def bytes_beside(repository: Path = REPOSITORY) -> int:
    """Bytes of the repository's files that travel with every transfer."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        check=True,
        capture_output=True,
    ).stdout
    names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    paths = [repository / name for name in names if not fnmatch(name, WEIGHTS)]
    return sum(path.lstat().st_size for path in paths if os.path.lexists(path))


def pack(folder: Path, archive: Path, *, left_out: Sequence[str] = (), preset: int = 9) -> None:
    """Writes what is in a folder to a `.tar.xz`, but for files that match a pattern.

    Args:
        folder: whose entries are at the archive's top.
        archive: the file to write.
        left_out: patterns of whole paths.
        preset: of xz, from 0 (fast) to 9 (small).
    """

    def choose(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if any(fnmatch(f"/{member.name}", one) for one in left_out) else member

    archive.parent.mkdir(parents=True, exist_ok=True)
    effort = preset | (lzma.PRESET_EXTREME if preset == 9 else 0)
    with (
        lzma.open(archive, "w", preset=effort) as out,
        tarfile.open(fileobj=out, mode="w:", dereference=True) as packed,
    ):
        for path in sorted(folder.iterdir()):
            packed.add(path, path.name, filter=choose)


def pack_onnxruntime(packages: Path, archive: Path, *, preset: int = 9) -> None:
    """Packs ONNX Runtime for CUDA, its provider cut to one architecture.

    Args:
        packages: a folder with `onnxruntime/` and its `.dist-info`, such as the unpacked wheel.
        archive: the file to write.
        preset: of xz.
    """
    with TemporaryDirectory(dir=archive.parent) as scratch:
        folder = Path(scratch)
        for name in ("onnxruntime", *(path.name for path in packages.glob("onnxruntime_gpu-*"))):
            shutil.copytree(packages.absolute() / name, folder / name, copy_function=os.symlink)
        (folder / PROVIDER).unlink()
        kept, cut = prune_provider(packages / PROVIDER, folder / PROVIDER)
        click.echo(f"device code: {kept:,} bytes kept, {cut:,} cut")
        pack(folder, archive, left_out=LEFT_OUT, preset=preset)


def pack_build(build: Path, archive: Path, *, preset: int = 9) -> None:
    """Packs a slim copy of a build, below a folder of the archive's name."""
    with TemporaryDirectory(dir=archive.parent) as scratch:
        slim_build(build, Path(scratch) / archive.name.removesuffix(".tar.xz"))
        pack(Path(scratch), archive, preset=preset)


def pack_true_size(build: Path, archive: Path, *, preset: int = 9) -> None:
    """Packs a build without its weights, below a folder of the archive's name."""
    with TemporaryDirectory(dir=archive.parent) as scratch:
        strip_build(build, Path(scratch) / archive.name.removesuffix(".tar.xz"))
        pack(Path(scratch), archive, preset=preset)


def _download(packages: Sequence[str], folder: Path) -> None:
    """Downloads wheels for the GPU machine in the versions of `constraints.txt`, unpacked."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    wheels = folder.with_name(f"{folder.name}-wheels")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    versions = dict(
        line.split("==")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    names = [f"{name}=={versions[name]}" for name in packages]
    subprocess.run([*command, *platforms, "-d", str(wheels), *names], check=True)
    for wheel in wheels.glob("*.whl"):
        with ZipFile(wheel) as packed:
            packed.extractall(folder)
    shutil.rmtree(wheels)


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Where the parts of the kit are made, each once.

    Attributes:
        scratch: an empty folder, with 40 GB for builds of true size.
        parts: finished archives; one is kept as long as the code and the pins that it follows from.
    """

    scratch: Path
    parts: Path

    def _part(self, name: str, *modules: str) -> Path:
        """Where the archive of that name lies, made by this code of the kit and of `modules`."""
        pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
        digest = hashlib.sha256((code_digest("benchmarks.gpu", *modules) + pins).encode())
        folder = self.parts / digest.hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.tar.xz"

    def onnxruntime(self) -> Path:
        """The archive of ONNX Runtime."""
        archive = self._part("onnxruntime")
        if not archive.exists():
            _download(["onnxruntime-gpu"], self.scratch / "onnxruntime")
            pack_onnxruntime(self.scratch / "onnxruntime", archive)
        return archive

    def triton(self) -> Path:
        """The archive of Triton and of its client's needs."""
        archive = self._part("triton")
        if not archive.exists():
            folder = self.scratch / "triton"
            _download(TRITON, folder)
            stubs = folder / "pytriton" / "tritonserver" / "python_backend_stubs"
            for stub in stubs.iterdir():
                if stub.name != PYTHON:
                    shutil.rmtree(stub)
            # Unpacking a wheel loses which files may be run.
            (folder / "pytriton" / "tritonserver" / "bin" / "tritonserver").chmod(0o755)
            (stubs / PYTHON / "triton_python_backend_stub").chmod(0o755)
            pack(folder, archive)
        return archive

    def build(self, demo: str, precision: str) -> Path:
        """The archive of a demo's verified build."""
        archive = self._part(f"{demo}-{precision}", *PACKAGES)
        if not archive.exists():
            output = self.scratch / f"{demo}-{precision}"
            model = str(REPOSITORY / "checkpoints" / demo)
            words = ("--model", model, "--precision", precision, "--output", str(output))
            _iblip("export", "build", *words, *ENGINE)
            pack_build(output, archive)
            shutil.rmtree(output)
        return archive

    def true_size(self, model: str) -> Path:
        """The archive of a model's graphs at their true size, in fp16."""
        archive = self._part(f"{model}-fp16", *PACKAGES)
        if not archive.exists():
            checkpoint, output = self.scratch / model, self.scratch / f"{model}-fp16"
            _iblip("export", "synthesize", model, str(checkpoint), "--dtype", "float16")
            words = ("--model", str(checkpoint), "--precision", "fp16", "--output", str(output))
            _iblip("export", "build", *words, *ENGINE, "--no-verify")
            pack_true_size(output, archive)
            shutil.rmtree(output)
            shutil.rmtree(checkpoint)
        return archive


def _iblip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "iblip", *words], check=True)


def _fill_first(transfer: Transfer, workshop: Workshop) -> None:
    """The proof: ONNX Runtime, and as many builds as fit."""
    transfer.add(workshop.onnxruntime(), "site")
    _fill_with_builds(transfer, workshop, already=())


def _fill_second(transfer: Transfer, workshop: Workshop) -> None:
    """The server, and the builds that the first had no room for. Needs what the first unpacked."""
    first = transfer.folder.with_name("1") / "builds.txt"
    if not first.exists():
        raise SystemExit("make transfer 1 first: transfer 2 holds what that has no room for")
    transfer.add(workshop.triton(), "site")
    _fill_with_builds(transfer, workshop, already=first.read_text(encoding="utf-8").split())


def _fill_third(transfer: Transfer, workshop: Workshop) -> None:
    """True sizes; they do not need what another transfer has unpacked."""
    transfer.add(workshop.onnxruntime(), "site")
    for model in SIZED:
        transfer.add(workshop.true_size(model), "true_size")


def _fill_with_builds(transfer: Transfer, workshop: Workshop, already: Sequence[str]) -> None:
    names = [(demo, precision) for precision in PRECISIONS for demo in DEMOS]
    for demo, precision in names:
        if f"{demo}-{precision}" in already:
            continue
        if transfer.room - transfer.size < LEAST:
            return  # nothing fits any more, and a build takes a minute to make
        archive = workshop.build(demo, precision)
        if transfer.fits(archive):
            transfer.add_build(archive)


TRANSFERS: Mapping[str, Callable[[Transfer, Workshop], None]] = {
    "1": _fill_first,
    "2": _fill_second,
    "3": _fill_third,
}
"""By number: the most valuable first."""


@click.command()
@click.option("--transfer", "numbers", multiple=True, type=click.Choice(list(TRANSFERS)))
@click.option("--output", type=click.Path(path_type=Path), default=KIT)
def main(numbers: tuple[str, ...], output: Path) -> None:
    """Make the transfers of the kit, and print their sizes."""
    room = LIMIT - SPARE - bytes_beside()
    parts = output / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output, prefix="scratch-") as scratch:
        workshop = Workshop(scratch=Path(scratch), parts=parts)
        for number in numbers or TRANSFERS:
            shutil.rmtree(output / number, ignore_errors=True)
            transfer = Transfer(folder=output / number, room=room)
            TRANSFERS[number](transfer, workshop)
            builds = f" ({', '.join(transfer.builds)})" if transfer.builds else ""
            click.echo(f"{transfer.folder}: {transfer.size:,} of {room:,} bytes{builds}")


if __name__ == "__main__":
    main()
