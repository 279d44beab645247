"""`python -m export`: the command `export`, which the shell's builtin of that name hides."""

from importlib.metadata import entry_points


def main() -> None:
    """Runs the installed command.

    By its entry point, because commands belong to `serving`, which this package knows nothing of.
    """
    (command,) = entry_points(group="console_scripts", name="export")
    command.load()()


if __name__ == "__main__":
    main()
