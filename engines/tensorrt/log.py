"""What TensorRT says, passed on to `logging`; its errors are kept for the exception's message."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

REMARKS = ("Make sure input", "Thread context has not been set", "HardwareCompatibilityLevel() is")
"""What it remarks on with nothing being wrong: int64 inputs, which contracts have checked, and
things of its own."""


def library_log(trt: Any, messages: list[str]) -> Any:
    """An `ILogger` of the library; its errors go to `messages`, to be raised rather than logged.

    Args:
        trt: a module with TensorRT's interface.
        messages: of errors, in the order in which they come.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.DEBUG,
        trt.ILogger.VERBOSE: logging.NOTSET,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels[severity]
            if any(remark in message for remark in REMARKS):
                logger.debug(message)
            elif level >= logging.ERROR:
                messages.append(message)
            elif level > logging.NOTSET:
                logger.log(level, message)

    return Log()
