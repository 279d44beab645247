"""`iblip synthesize`: a checkpoint with a released model's true shapes and random weights."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path

import click

from iblip.serving.cli.commands import Command
from iblip.serving.cli.formatting import echo, echo_json, size_of
from iblip.serving.cli.kinds import PATH, Word
from iblip.serving.cli.options import as_json


def _names() -> Iterable[str]:
    from iblip.export.models.table import MODELS

    return MODELS


@click.command(cls=Command, short_help="Write a checkpoint of random weights.")
@click.argument("name", type=Word(_names))
@click.argument("out", type=PATH)
@click.option(
    "--dtype",
    "--precision",
    "dtype",
    default="float32",
    show_default=True,
    help="float32, float16 or bfloat16; fp32, fp16 and bf16 mean the same.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same bytes.")
@as_json
def command(name: str, out: Path, dtype: str, seed: int, json_: bool) -> None:
    """Write a checkpoint with the shapes of the model NAME and random weights to OUT.

    For capacity planning without a download: names, shapes and files are those of the released
    model, but the answers mean nothing. `iblip models` lists the names.
    """
    from iblip.export.artifact.manifest import MEANS_NOTHING
    from iblip.export.errors import OptionError
    from iblip.export.messages import did_you_mean
    from iblip.export.models.table import MODELS
    from iblip.export.precision import DTYPES
    from iblip.export.synthesis.checkpoint import Synthesis, synthesize
    from iblip.serving.cli.progress import command_progress
    from iblip.serving.cli.quiet import quiet_libraries

    if dtype.lower() in ("fp32", "fp16", "bf16"):
        dtype = DTYPES[dtype.lower()]
    if name not in MODELS:
        hint, known = did_you_mean(name, MODELS), "\n  ".join(MODELS)
        raise OptionError(f"there is no model {name}.{hint} Expected one of\n  {known}")
    progress = command_progress()
    quiet_libraries()
    started = time.monotonic()
    size = synthesize(Synthesis(model=MODELS[name], dtype=dtype, seed=seed), out, progress)
    seconds = time.monotonic() - started
    if json_:
        facts = {"model": name, "dtype": dtype, "seed": seed, "bytes": size}
        result = {"directory": str(out.absolute()), **facts, "seconds": round(seconds, 3)}
        echo_json(result)
    else:
        echo(
            f"Wrote {out}: {name} in {dtype}, {size_of(size)}, {seconds:.0f} s"
            f" ({size / 1e6 / seconds:.0f} MB/s). {MEANS_NOTHING.capitalize()}.\n"
            f"Build it:  iblip build --model {shlex.quote(str(out))} --no-verify"
        )
