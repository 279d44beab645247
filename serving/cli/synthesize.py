"""`export synthesize`: a checkpoint with a released model's true shapes and random weights."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from iblip.serving.cli.formatting import echo
from iblip.serving.cli.options import as_json


@click.command()
@click.argument("name")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dtype", default="float32", show_default=True, help="float32, float16 or bfloat16.")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same bytes.")
@as_json
def command(name: str, out: Path, dtype: str, seed: int, json_: bool) -> None:
    """Write a checkpoint with the shapes of the model NAME and random weights to OUT.

    For capacity planning without a download: names, shapes and files are those of the released
    model, but the answers mean nothing. `iblip models` lists the names.
    """
    from iblip.export.artifact.manifest import MEANS_NOTHING
    from iblip.export.errors import OptionError
    from iblip.export.models.table import MODELS
    from iblip.export.synthesis.checkpoint import Synthesis, synthesize
    from iblip.serving.cli.progress import Terminal
    from iblip.serving.cli.quiet import quiet_libraries

    quiet_libraries()
    if name not in MODELS:
        known = "\n  ".join(MODELS)
        raise OptionError(f"there is no model {name}; expected one of\n  {known}")
    started = time.monotonic()
    size = synthesize(Synthesis(model=MODELS[name], dtype=dtype, seed=seed), out, Terminal())
    seconds = time.monotonic() - started
    if json_:
        facts = {"model": name, "dtype": dtype, "seed": seed, "bytes": size}
        result = {"directory": str(out.absolute()), **facts, "seconds": round(seconds, 3)}
        echo(json.dumps(result, indent=2))
    else:
        echo(
            f"Wrote {out}: {name} in {dtype}, {size / 2**30:.2f} GiB, {seconds:.0f} s"
            f" ({size / 1e6 / seconds:.0f} MB/s). {MEANS_NOTHING.capitalize()}.\n"
            f"Build it:  export build --model {out} --no-verify"
        )
