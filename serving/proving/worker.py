"""The process of one stage: `python -m iblip.serving.proving.worker JOB`, started by `running`.

Writes JSON lines of facts, then of the end, to the file descriptor that the job names; standard
output is left to the libraries.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from iblip.export.artifact.manifest import Manifest
from iblip.export.errors import IblipError
from iblip.export.system.installing import missing_package
from iblip.serving.proving.record import End, Fact
from iblip.serving.proving.stages import STAGES
from iblip.serving.proving.subject import NothingToMeasureError, Subject


def main(job: dict[str, Any]) -> None:
    """Runs a stage.

    Args:
        job: `{"build", "stage", "limit", "torch", "stubs", "descriptor"}`.
    """
    with os.fdopen(job["descriptor"], "w", encoding="utf-8") as out:

        def tell(line: dict[str, Any]) -> None:
            out.write(json.dumps({"stage": job["stage"], **line}, ensure_ascii=False) + "\n")
            out.flush()

        started = time.monotonic()
        ended, reason = _run(job, tell)
        seconds = round(time.monotonic() - started, 2)
        tell({"ended": ended, "reason": reason, "seconds": seconds})
        out.flush()


def _run(job: dict[str, Any], tell: Any) -> tuple[End, str]:
    directory = Path(job["build"])
    subject = Subject(
        directory=directory,
        manifest=Manifest.read(directory),
        limit=job["limit"],
        torch=job["torch"],
        stubs=job["stubs"],
    )
    try:
        for fact in STAGES[job["stage"]].load()(subject):
            tell(_without_limit(fact).to_json() if job["stubs"] else fact.to_json())
    except NothingToMeasureError as reason:
        return "skipped", str(reason)
    except IblipError as error:
        return "failed", str(error)
    except Exception as error:  # a stage is to say what ended it, whatever a library raised
        missing = missing_package(error) if isinstance(error, ImportError) else None
        if missing is not None:
            return "failed", str(missing)
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}"
    return "done", ""


def _without_limit(fact: Fact) -> Fact:
    """Over stubs no number means anything."""
    return replace(fact, limit=None)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
