"""Ends the process of a Python model that can no longer do its work.

A Python model that fails at every request looks like one that is asked wrongly. One whose process
has ended says so: Triton answers that its stub process is not healthy (2.51 does not start it
again, and still calls the model ready), and whoever watches the processes can restart the server.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from iblip.engines.cuda.errors import find_fatal

logger = logging.getLogger(__name__)

EXIT_STATUS = 70
"""`EX_SOFTWARE` of `sysexits.h`."""

GRACE_S = 1.0
"""Seconds from the error to the end, in which the requests under way get their answer: an error."""

_ending = threading.Lock()


def end_if_fatal(error: BaseException, exit_process: Callable[[int], object] = os._exit) -> bool:
    """Ends this process, a little later, if the error leaves it without its GPU.

    Args:
        error: of a request, which the caller answers at once.
        exit_process: takes the exit status. By default it ends the process without running
            anything else, because freeing what is on the GPU fails as well.

    Returns:
        whether the process ends.
    """
    name = find_fatal(error)
    if name is None:
        return False
    if _ending.acquire(blocking=False):  # never released: a process ends once
        logger.critical(
            "%s: this process can no longer use the GPU, so it ends with status %d (%s)",
            name,
            EXIT_STATUS,
            error,
        )
        timer = threading.Timer(GRACE_S, exit_process, (EXIT_STATUS,))
        timer.daemon = True
        timer.start()
    return True
