"""What every command line here has in common: flags in, a frozen dataclass out, and one line for what went wrong.

args = parse_flags(Export, None, Export(), prog="export.py")
with refusals_told():
    main(args)
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TypeVar

import tyro

T = TypeVar("T")


class InputError(ValueError):
    """Something the user can put right: a flag, a file, a folder. The command line prints it as one line."""


@contextlib.contextmanager
def refusals_told() -> Iterator[None]:
    """Raises as InputErrors what the file system and the memory refuse."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(f"cannot use {error.filename} ({error.strerror}): mend that, or name another") from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "tried to allocate" not in str(error).lower():
            raise
        raise InputError("out of memory: choose smaller batches, canvases, images or models") from error


def parse_flags(cls: type[T], argv: list[str] | None, default: T, prog: str) -> T:
    """Parses flags into a dataclass whose field docs are the help.

    tyro draws a box around what a constructor raises; it is given a twin that checks nothing, so that the errors of cls
    come out as they are.
    """
    twin = dataclass(frozen=True)(
        type(cls.__name__, (cls,), {"__doc__": cls.__doc__, "__post_init__": lambda self: None})
    )
    markers = (tyro.conf.FlagConversionOff,)
    values = twin(**asdict(default))
    try:
        flags = tyro.cli(twin, args=argv, default=values, prog=prog, use_underscores=True, config=markers)
    except BrokenPipeError:  # `--help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of the pipe as it ends
        raise SystemExit(1) from None
    return cls(**asdict(flags))
