"""Passes TensorRT's log to `logging`; its errors are kept for the exception's message."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

REMARKS = ("Make sure input", "Thread context has not been set", "HardwareCompatibilityLevel() is")
"""Beginnings of its warnings about things that are not wrong: int64 inputs, which contracts have
checked, and internals of its own."""


def library_log(trt: Any, messages: list[str]) -> Any:
    """An `ILogger` of the library; its errors go to `messages`, to be raised instead of logged.

    Args:
        trt: a module with TensorRT's interface.
        messages: receives the error messages, in order.
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
