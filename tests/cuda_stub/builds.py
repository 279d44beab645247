"""Makes builds for the CUDA provider, with the project's main environment.

    python -m tests.cuda_stub.builds DIRECTORY

It reads names from standard input, such as `instructblip-demo-vicuna fp16`, makes a build of each
in `DIRECTORY`, and answers with its path, or with `failed` and why. One process makes all, because
importing torch takes long. What is there already is kept, unless the code that makes it changed.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def make_build(directory: Path, demo: str, precision: str) -> Path:
    """A build of a demo checkpoint whose components all run on `onnxruntime-cuda`."""
    from iblip.export.checkpoint.source import ModelSource
    from iblip.serving.builder.build import build
    from iblip.serving.builder.options import BuildOptions, EngineOptions

    engine = "onnxruntime-cuda"
    return build(
        BuildOptions(
            source=ModelSource(model=str(CHECKPOINTS / demo)),
            output=directory / f"{demo}-{precision}",
            precision=precision,
            engines=EngineOptions(engine=engine, llm_engine=engine),
            verification=None,  # it would run the graphs on the CPU, and compares no placement
        )
    )


def main(directory: Path) -> None:
    """Answers each name on standard input with a line."""
    from iblip.serving.cli.quiet import quiet_libraries

    quiet_libraries()
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):
            try:
                answer = str(make_build(directory, *line.split()))
            except Exception as error:
                traceback.print_exc()
                answer = f"failed: {' '.join(str(error).split())}"
        print(answer, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
