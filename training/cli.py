"""What every command line here shares: flags in, checked settings out, one line for what went wrong.

    if __name__ == "__main__":
        run_command(main, Export, prog="tools.export")

Imports nothing heavy, so that `--help` answers at once.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")


class InputError(Exception):
    """Something the user can fix: a flag, a file, a folder. The command line prints it as one line.

    It is no ValueError, which tyro would draw a box around.
    """


class Bounds(NamedTuple):
    """The allowed values of a setting."""

    text: str
    hold: Callable[[Any], bool]


Positive = Annotated[int, Bounds("a whole number from 1 to 2**31 - 1", lambda value: 1 <= value < 2**31)]
Count = Annotated[int, Bounds("a whole number from 0 to 2**31 - 1", lambda value: 0 <= value < 2**31)]
PositiveFloat = Annotated[float, Bounds("a finite number above 0", lambda value: 0 < value < math.inf)]
NonNegative = Annotated[float, Bounds("a finite number of at least 0", lambda value: 0 <= value < math.inf)]
BelowOne = Annotated[float, Bounds("at least 0 and below 1", lambda value: 0 <= value < 1)]


class Settings:
    """Base of frozen dataclasses whose fields are checked against their types and bounds as they are made."""

    def __post_init__(self):
        for name, hint in hints_of(type(self)).items():  # a saved setting may be anything
            kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if kind is float and type(getattr(self, name)) is int:
                object.__setattr__(self, name, float(getattr(self, name)))
            value = getattr(self, name)
            require(self, name, _is_of(value, kind), _named(kind))
            for bounds in extras:
                if isinstance(bounds, Bounds):
                    require(self, name, bounds.hold(value), bounds.text)


def _is_of(value, kind) -> bool:
    """Whether a value is of a field's type: a plain one, `int | None`, a tuple, or a Literal."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    kinds = (tuple,) if get_origin(kind) is tuple else get_args(kind) or (kind,)
    return bool in kinds if isinstance(value, bool) else isinstance(value, kinds)  # Python counts a bool as an int


def _named(kind) -> str:
    """A type as a message names it."""
    is_literal = get_origin(kind) is Literal
    return f"one of {list(get_args(kind))}" if is_literal else f"of type {getattr(kind, '__name__', kind)}"


def hints_of(settings: type) -> dict:
    """The types of a dataclass's fields, with their bounds."""
    return get_type_hints(settings, include_extras=True)


def require(settings: Any, name: str, fulfilled: bool, allowed: str):
    """Raises InputError, which names the field, its value and what is allowed, unless that is fulfilled."""
    if not fulfilled:
        raise InputError(f"{name}={getattr(settings, name)} is not allowed: it must be {allowed}")


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
