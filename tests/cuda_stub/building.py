"""Compiles the stub CUDA libraries for the ONNX Runtime that is installed here.

    python -m tests.cuda_stub.building HEADERS OUTPUT

`HEADERS` is a folder into which `nvidia-cuda-runtime` and `nvidia-cuda-crt` were installed with
`pip install --target`: beside ONNX Runtime, their real libcudart would be loaded instead. What the
sources in `c/` do not define of the symbols that the CUDA provider wants is generated: it succeeds
and does nothing. `c/stub.h` says what the stubs show and what they do not.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.cuda_stub.symbols import find_names, find_undefined

SOURCES = Path(__file__).parent / "c"

RUNTIME = "libcudart.so.13"

LIBRARIES: Mapping[str, tuple[str, ...]] = {
    RUNTIME: ("state.c", "memory.c", "streams.c", "kernels.c", "device.c"),
    "libcuda.so.1": ("driver.c",),
    "libnvidia-ml.so.1": ("nvml.c",),
    "libcublas.so.13": ("cublas.c",),
    "libcublasLt.so.13": ("cublaslt.c",),
    "libcurand.so.10": (),
    "libcudnn.so.9": ("cudnn.c",),
}
"""Each library's own sources. The first is loaded by the others: it counts for all."""

CUDNN = "cudnn"
"""Folder of cuDNN within the output, so that a run can leave it out."""

NO_COMPILER = "no C compiler was found (cc, gcc or clang): the stubs of CUDA are not made"

UNVERSIONED = ("libcuda.so.1", "libnvidia-ml.so.1", "libcudnn.so.9")


def build_stubs(headers: Path, output: Path) -> None:
    """Writes the libraries of `LIBRARIES` into `output`, cuDNN's into a folder below it.

    Without a C compiler it says so and writes nothing.

    Raises:
        SystemExit: the headers or the provider are missing.
        subprocess.CalledProcessError: a source does not compile.
    """
    compiler = find_compiler()
    if compiler is None:
        print(NO_COMPILER, file=sys.stderr)
        return
    includes = [found.parent for found in headers.rglob("cuda_runtime_api.h")]
    if not includes:
        raise SystemExit(f"there is no cuda_runtime_api.h below {headers}")
    (output / CUDNN).mkdir(parents=True, exist_ok=True)
    wanted = _wanted(find_provider())
    for library, sources in LIBRARIES.items():
        target = output / (CUDNN if "cudnn" in library else "") / library
        generated = output / f"{library}.c"
        generated.write_text(_generate(wanted.get(library, set())), encoding="utf-8")
        version = output / f"{library}.map"
        name = "" if library in UNVERSIONED else f"{library} "
        version.write_text(f"{name}{{ global: *; }};\n", encoding="utf-8")
        command: list[object] = [compiler, "-O1", "-fPIC", "-shared", "-Wall", "-o", target]
        command += ["-Wno-unused-parameter", "-I", SOURCES, *_each("-isystem", includes)]
        command += [*(SOURCES / source for source in sources), generated]
        command += [f"-Wl,-soname,{library}", f"-Wl,--version-script={version}", "-lpthread"]
        if library != RUNTIME:
            command += [output / RUNTIME, "-Wl,-rpath,$ORIGIN:$ORIGIN/.."]
        subprocess.run([str(word) for word in command], check=True)


def find_compiler() -> str | None:
    """A C compiler's command; `None` if none is installed."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def find_provider() -> Path:
    """The installed `libonnxruntime_providers_cuda.so`. Importing ONNX Runtime is not needed."""
    spec = importlib.util.find_spec("onnxruntime")
    for folder in spec.submodule_search_locations or [] if spec else []:
        provider = Path(folder) / "capi" / "libonnxruntime_providers_cuda.so"
        if provider.is_file():
            return provider
    raise SystemExit("onnxruntime-gpu is not installed in this environment")


def _wanted(provider: Path) -> dict[str, set[str]]:
    """What the provider takes from each library, at its start or when it is first needed."""
    wanted = find_undefined(provider)
    wanted["libcuda.so.1"] = {name for name in wanted.pop("", set()) if name.startswith("cu")}
    wanted["libcudnn.so.9"] = find_names(provider, "cudnn")
    return wanted


def _generate(names: set[str]) -> str:
    """C that defines each name weakly: a source's own definition takes its place."""
    rows = [
        f'__attribute__((weak)) int {name}(void) {{ return stub_ignore("{name}"); }}'
        for name in sorted(names)
    ]
    return "\n".join(["int stub_ignore(const char *name);", *rows, ""])


def _each(option: str, values: list[Path]) -> list[object]:
    return [word for value in values for word in (option, value)]


if __name__ == "__main__":
    build_stubs(Path(sys.argv[1]), Path(sys.argv[2]))
