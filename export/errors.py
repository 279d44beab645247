"""What can go wrong, as one tree.

    IblipError                  exit status 1: the work failed
    ├── UsageError              exit status 2: the call was wrong
    │   ├── OptionError         an option is misspelt, out of range, or does not fit the others
    │   └── InputError          an input (image, prompt, tensor) cannot be used
    ├── CheckpointError         a checkpoint is missing, truncated or of an unsupported architecture
    ├── ExportError             a graph could not be traced or written
    ├── ContractError           tensors do not match the contract of a graph
    ├── VerificationError       a build's answers differ from the reference
    ├── BuildDirectoryError     a directory is not a build, or could not be written
    ├── EngineError             an engine could not be built, loaded or run
    │   └── QueueFullError      too many requests wait for a slot; try again later
    ├── DeadlineError           an answer was not finished by its deadline
    └── ServingError            the server could not be found, started or reached

Every message says what was asked, what was found, what was expected, and what to do about it.
`is_retryable` says whether the same call may succeed later.
"""

from __future__ import annotations


class IblipError(Exception):
    """The work failed.

    Attributes:
        exit_status: what the command line ends with.
        is_retryable: whether the same call may succeed later, because it was nothing about the
            call that failed, such as a full queue.
        retry_after_s: seconds after which to try again, where the server has named them.
    """

    exit_status = 1
    is_retryable = False
    retry_after_s: float | None = None


class UsageError(IblipError):
    """The call itself was wrong: nothing was started, nothing was changed."""

    exit_status = 2


class OptionError(UsageError):
    """An option is misspelt, out of range, or does not fit the others."""


class InputError(UsageError):
    """An image, a prompt or a tensor that cannot be used."""


class CheckpointError(IblipError):
    """A checkpoint is missing, truncated, or not of a supported architecture."""


class ExportError(IblipError):
    """A graph could not be traced or written."""


class ContractError(IblipError):
    """Tensors given to, or returned by, a graph do not match its contract."""


class VerificationError(IblipError):
    """A build gives other answers than its reference."""


class BuildDirectoryError(IblipError):
    """A directory is not a build, or a build could not be written to it."""


class EngineError(IblipError):
    """An engine could not be built, loaded or run."""


class QueueFullError(EngineError):
    """Too many requests are waiting for a slot: nothing was done, and later may be better."""

    is_retryable = True


class DeadlineError(IblipError):
    """An answer was not finished by its deadline."""


class ServingError(IblipError):
    """The server could not be found, started, or reached."""
