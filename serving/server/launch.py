"""`launch.py PARENT COMMAND…` becomes the command, which is told to stop when its parent is gone.

Run as a script of its own. To ask this of the kernel between fork and exec, inside the parent, is
no way: gRPC's threads do not survive a fork that runs Python. Not on Linux, it only becomes the
program.
"""

import ctypes
import os
import signal
import sys

SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>


def main() -> None:
    """Asks the kernel, then becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it went before we asked
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
