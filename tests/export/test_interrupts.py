from __future__ import annotations

import signal
import subprocess
import sys
import time

SCRIPT = """
from concurrent.futures import ThreadPoolExecutor
from export.interrupts import submit
with ThreadPoolExecutor(1) as pool:
    print("begun", flush=True)
    while True:
        submit(pool, int).result()
"""


def test_an_interrupt_while_work_is_handed_over_ends_the_process() -> None:
    for turn in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(turn / 100)
            process.send_signal(signal.SIGINT)
            try:
                _, said = process.communicate(timeout=30)
            finally:
                process.kill()
        assert b"KeyboardInterrupt" in said
