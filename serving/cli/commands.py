"""What every command has in common: how it is found, what it accepts, and how it ends.

    0    done
    1    the work failed: a verification, a download, a server
    2    the call was wrong: an option, a name, a path that is not there
    130  interrupted by Ctrl-C

`EXIT_STATUSES` holds this table. With `--json`, an error is also a JSON document on stdout.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from iblip.export.errors import IblipError
from iblip.export.messages import closest, did_you_mean
from iblip.export.system.installing import missing_package
from iblip.export.system.interrupts import interrupts_sent_again
from iblip.serving.cli.formatting import (
    FileError,
    discard_output,
    echo_json,
    echo_verdicts,
    is_of_output,
)

EXIT_STATUSES: Mapping[int, str] = {
    0: "done",
    1: "the work failed",
    2: "the call was wrong: an option, a name, or a path that is not there",
    130: "interrupted by Ctrl-C",
}
"""Every status that a command ends with, and what it means."""

INTERRUPTED = 130

QUIET = "iblip.quiet"
"""Key of click's context for whether `--quiet` was given."""


class Interrupted(click.Abort):
    """Ctrl-C, with what became of the work.

    Args:
        outcome: a sentence, such as "Nothing was written."
    """

    def __init__(self, outcome: str = "") -> None:
        super().__init__(outcome)
        self.outcome = outcome


def is_quiet() -> bool:
    """Whether the command that runs was called with `--quiet`."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(QUIET))


def _be_verbose(ctx: click.Context, parameter: click.Parameter, count: int) -> None:
    if count:
        logging.getLogger().setLevel(logging.INFO if count == 1 else logging.DEBUG)


def _be_quiet(ctx: click.Context, parameter: click.Parameter, quiet: bool) -> None:
    if quiet:
        ctx.meta[QUIET] = True


def _common_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["-v", "--verbose"],
            count=True,
            expose_value=False,
            callback=_be_verbose,
            help="Log more; twice for everything.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_be_quiet,
            help="Show no progress, only results and errors.",
        ),
    ]


class Command(click.Command):
    """A command that also accepts `-v`, `-q` and `-h`, and lists its options under headings.

    Args:
        headings: heading to the names of its options; all others are under "Options".
    """

    def __init__(
        self, *args: Any, headings: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.params += _common_options()
        self._headings = dict(headings or {})

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options, heading after heading."""
        heading_of = {name: heading for heading, names in self._headings.items() for name in names}
        sections: dict[str, list[tuple[str, str]]] = {
            heading: [] for heading in (*self._headings, "Options")
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections[heading_of.get(parameter.name or "", "Options")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Commands(click.Group):
    """A group whose commands are looked up in a table, and which reports this project's errors.

    An `IblipError` ends the process with its own exit status and one line on stderr; any other
    exception is a bug and keeps its traceback.
    """

    command_class = Command

    def __init__(self, *args: Any, table: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **kwargs)
        self.params += _common_options()
        self._table = dict(table or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the table."""
        return [*self._table, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now; `None` where there is none."""
        if cmd_name not in self._table:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(self._table[cmd_name]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names; a misspelt one gets a suggestion."""
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:
            name = error.command_name
            hint = did_you_mean(name, self.list_commands(ctx))
            raise click.UsageError(f"there is no command {name!r}.{hint}", ctx) from None

    @interrupts_sent_again()
    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command that `args` name, and ends the process with its exit status."""
        words = sys.argv[1:] if args is None else list(args)
        call = (words, prog_name, complete_var)
        if not standalone_mode:
            return super().main(*call, standalone_mode=False, **extra)
        logging.basicConfig(
            level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True
        )
        try:
            with _interrupts_recognised():
                status = super().main(*call, standalone_mode=False, **extra)
        except (click.ClickException, click.Abort, IblipError, ImportError) as error:
            status = _report(error, "--json" in words)
        except OSError as error:
            if is_of_output(error):
                discard_output()
                message, as_json = f"the output cannot be written: {error.strerror}", False
            elif error.filename is not None:
                message, as_json = f"{error.filename}: {error.strerror}", "--json" in words
            else:
                raise
            logging.getLogger(__name__).info("where it was found", exc_info=error)
            status = _report(FileError(message), as_json)
        sys.exit(status if isinstance(status, int) else 0)


@contextmanager
def _interrupts_recognised() -> Iterator[None]:
    """Raises `Abort` for Ctrl-C of which a library has made an error of its own.

    A module in C that is being loaded makes an ImportError of it.
    """
    try:
        yield
    except click.Abort:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        if cause is None:
            raise
        raise click.Abort from error


def _report(error: Exception, as_json: bool) -> int:
    """Says what went wrong; returns the exit status. What is a bug is raised again."""
    if isinstance(error, ImportError):
        missing = missing_package(error)
        if missing is None:
            raise error
        error = missing
    if isinstance(error, click.Abort):
        outcome = getattr(error, "outcome", "")
        kind, message, status = "Interrupted", f"interrupted. {outcome}".rstrip(), INTERRUPTED
    elif isinstance(error, click.ClickException):
        kind, message, status = "UsageError", _sentence(error), error.exit_code
    else:
        assert isinstance(error, IblipError)
        kind, message, status = type(error).__name__, str(error), error.exit_status
    if as_json:
        echo_json({"error": {"kind": kind, "message": message, "exit_status": status}}, indent=None)
    context = getattr(error, "ctx", None)
    hint = ""
    if context is not None and isinstance(error, click.UsageError):
        hint = f" See `{context.command_path} -h`."
    echo_verdicts(message if kind == "Interrupted" else f"error: {message}{hint}", err=True)
    return status


def _sentence(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error)
    message = error.format_message().rstrip(".")
    return f"{message[:1].lower()}{message[1:]}" + ("" if message.endswith("?") else ".")


def _no_such_option(error: click.NoSuchOption) -> str:
    name, bare = error.option_name, error.option_name.lstrip("-")
    names = {known.lstrip("-"): known for known in error.possibilities or ()}
    near = closest(bare, names)  # without the dashes, in which all are alike
    hint = "" if near is None else f" Did you mean {names[near]!r}?"
    if not hint and error.ctx is not None and isinstance(error.ctx.command, click.Group):
        hint = f" A command's options stand behind its name: `{error.ctx.command_path} … {name}`."
    return f"there is no option {name}.{hint}"
