"""Flags in, a frozen dataclass out: what every command line here is parsed by.

args = parse_flags(Export, None, Export(), prog="export.py")
"""

import os
import sys
from dataclasses import asdict, dataclass
from typing import TypeVar

import tyro

T = TypeVar("T")


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
