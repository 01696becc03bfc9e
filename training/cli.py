"""What every command line here shares: flags in, a frozen dataclass out, one line for what went wrong.

    if __name__ == "__main__":
        run_command(main, Export, prog="tools.export")

Imports nothing heavy, so that `--help` answers at once.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import tyro

T = TypeVar("T")


class InputError(Exception):
    """Something the user can fix: a flag, a file, a folder. The command line prints it as one line.

    It is no ValueError, which tyro would draw a box around.
    """


@contextlib.contextmanager
def as_input_errors() -> Iterator[None]:
    """Raises what the file system and the memory reject as InputErrors."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(f"cannot use {error.filename} ({error.strerror}): fix that, or name another") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "tried to allocate" not in str(error).lower():
            raise
        raise InputError("out of memory: choose smaller batches, canvases, images or models") from error


def parse_flags(default: T, argv: list[str] | None, prog: str) -> T:
    """Parses flags into a dataclass, whose groups are nested dataclasses and whose field docs are the help.

    Args:
        default: the settings that flags override.
        argv: flags; None takes those of the process.
        prog: name of the command.
    Raises:
        InputError: a value is not allowed.
        SystemExit: after --help, or a flag that does not exist or does not parse (tyro prints why).
    """
    style = (tyro.conf.FlagConversionOff, tyro.conf.OmitArgPrefixes)
    try:
        return tyro.cli(type(default), args=argv, default=default, prog=prog, use_underscores=True, config=style)
    except BrokenPipeError:  # `--help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of the pipe as it ends
        raise SystemExit(1) from None


def run_command(main: Callable[[T], object], settings: type[T], prog: str):
    """Calls a command with its settings from the command line; ends with one line where the user can fix it."""
    try:
        with as_input_errors():
            main(parse_flags(settings(), None, prog))
    except InputError as error:
        sys.exit(f"{prog}: {error}")


def read_toml(path: Path) -> dict:
    """Reads a file of settings.

    Raises:
        InputError: it cannot be read, or is no TOML.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as TOML ({error})") from error
