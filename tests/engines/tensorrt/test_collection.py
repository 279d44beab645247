"""A logger of the real library while garbage that is the library's own lies about."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from iblip.engines.tensorrt.collection import no_collection

pytest.importorskip("tensorrt_rtx_bindings")

SCRIPT = """
import gc, logging, sys
from pathlib import Path
from iblip.engines.tensorrt.libraries import find_library
from iblip.engines.tensorrt.loading import open_plan
from iblip.engines.tensorrt.log import library_log
from iblip.export.errors import EngineError

class Busy(logging.Handler):
    def emit(self, record):
        self.kept = [[] for _ in range(10_000)]  # a collection is due
        print("said:", record.getMessage())

root = logging.getLogger()
root.setLevel(logging.DEBUG)
root.addHandler(Busy())
library = find_library("tensorrt-rtx")
gc.collect()
ring = [library.module.Builder(library_log(library.module, []))]
ring.append(ring)
del ring
try:
    open_plan(Path(sys.argv[1]), (), library)
except EngineError as error:
    print("refused:", error)
gc.collect()
"""


def test_garbage_of_the_library_is_not_freed_while_it_logs(tmp_path: Path) -> None:
    """Else the library waits for a lock that it holds itself."""
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"no plan at all")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(plan)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "said: Loaded engine size" in done.stdout
    assert "refused: tensorrt-rtx cannot load the plan" in done.stdout


def test_collection_goes_on_after_the_last_of_several_calls() -> None:
    assert gc.isenabled()
    inside, leave = threading.Event(), threading.Event()

    @no_collection()
    def call() -> None:
        inside.set()
        leave.wait(60)

    thread = threading.Thread(target=call)
    thread.start()
    assert inside.wait(60)
    with no_collection():
        assert not gc.isenabled()
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_what_was_off_stays_off() -> None:
    gc.disable()
    try:
        with pytest.raises(ValueError, match="fails"), no_collection():
            raise ValueError("fails")
        assert not gc.isenabled()
    finally:
        gc.enable()
