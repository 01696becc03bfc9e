"""What every command line here shares: flags in, checked settings out, one line for what went wrong.

    if __name__ == "__main__":
        run_command(main, Export, prog="tools.export")

Imports nothing heavy, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TextIO, TypeVar, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")


class InputError(Exception):
    """Something the user can fix: a flag, a file, a folder. The command line prints it as one line.

    It is no ValueError, which tyro would draw a box around.
    """


def printable(text: object) -> str:
    """The text on one line: what would move the cursor or hide other text is written as an escape.

    Names of files and classes may hold newlines, a terminal's escape sequences, and bytes that are no UTF-8.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in str(text))


def say(text: object):
    """Prints one line, at once."""
    print(printable(text), flush=True)


class Bounds(NamedTuple):
    """The allowed values of a setting."""

    text: str
    hold: Callable[[Any], bool]


Positive = Annotated[int, Bounds("a whole number from 1 to 2**31 - 1", lambda value: 1 <= value < 2**31)]
Count = Annotated[int, Bounds("a whole number from 0 to 2**31 - 1", lambda value: 0 <= value < 2**31)]
PositiveFloat = Annotated[float, Bounds("a finite number above 0", lambda value: 0 < value < math.inf)]
NonNegative = Annotated[float, Bounds("a finite number of at least 0", lambda value: 0 <= value < math.inf)]
Names = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction]  # --flag a b, --flag=a --flag=b, or both
BelowOne = Annotated[float, Bounds("at least 0 and below 1", lambda value: 0 <= value < 1)]
FROM_HOME = object()  # marks a path, whose ~ is the user's home: shells leave that of --ckpt_dir=~/runs as it is
PathText = Annotated[str, FROM_HOME]


class Settings:
    """Base of frozen dataclasses whose fields are checked against their types and bounds as they are made."""

    def __post_init__(self):
        for name, hint in hints_of(type(self)).items():  # a saved setting may be anything
            kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
            if kind is float and type(getattr(self, name)) is int:
                object.__setattr__(self, name, float(getattr(self, name)))
            value = getattr(self, name)
            require(self, name, _is_of(value, kind), _named(kind))
            if FROM_HOME in extras:
                object.__setattr__(self, name, os.path.expanduser(value))
            for bounds in extras:
                if isinstance(bounds, Bounds):
                    require(self, name, bounds.hold(value), bounds.text)


def _is_of(value, kind) -> bool:
    """Whether a value is of a field's type: a plain one, `int | None`, a tuple, or a Literal."""
    if get_origin(kind) is Literal:
        return any(type(value) is type(each) and value == each for each in get_args(kind))  # 1 == True
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
    """Raises what the file system, the memory and worker processes reject as InputErrors."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise InputError(f"cannot use {error.filename} ({error.strerror}): fix that, or name another") from error
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if any(sign in text for sign in ("dataloader worker", "shared memory", "write to file </torch_")):
            raise InputError(
                f"a process that decodes images has died ({str(error).splitlines()[0]}): memory or shared memory "
                f"(/dev/shm) is full; choose fewer --num_workers=, 0 needs none, or docker run --shm-size=1g"
            ) from error
        if isinstance(error, RuntimeError) and "tried to allocate" not in text:
            raise
        raise InputError("out of memory: choose smaller batches, canvases, images or models") from error


class Output:
    """A stream whose failures stop nothing: the first is reported on the other stream, and what is lost is lost.

    A pipe may have lost its reader (`main.py | head`), a disk may be full, a terminal closed.

    Args:
        stream: stdout or stderr.
        name: which of the two.
        other: where a failure is reported.
    """

    def __init__(self, stream: TextIO, name: str, other: TextIO):
        self.stream, self.name, self.other = stream, name, other
        self.failed = False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]):
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if not self.failed:
                self.failed = True
                with contextlib.suppress(OSError, ValueError):
                    reason = getattr(error, "strerror", None) or error
                    print(
                        f"[!] cannot write to {self.name} ({reason}): continuing without", file=self.other, flush=True
                    )

    def close_if_failed(self):
        """Python writes what a stream still holds as it ends, and would fail again."""
        self.flush()
        if self.failed:
            with contextlib.suppress(OSError, ValueError):  # it has no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextlib.contextmanager
def steady_process() -> Iterator[None]:
    """Nothing of how a command was started stops it: no lost stdout or stderr, no setting of a notebook's kernel."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file to be opened would get its number, and warnings with it
            os.open(os.devnull, os.O_RDWR)
    os.environ["MPLBACKEND"] = "agg"  # a kernel names its own, which only it can load
    before = sys.stdout, sys.stderr
    streams = [stream or open(os.devnull, "w") for stream in before]  # noqa: SIM115
    for stream in streams:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it is no file, or broken
            stream.reconfigure(errors="backslashreplace")  # of a terminal that lacks letters
    sys.stdout = Output(streams[0], "stdout", streams[1])
    sys.stderr = Output(streams[1], "stderr", streams[0])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Output):
                stream.close_if_failed()
        sys.stdout, sys.stderr = before


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
    argv = with_values(sys.argv[1:] if argv is None else argv, type(default))
    try:
        return tyro.cli(type(default), args=argv, default=default, prog=prog, use_underscores=True, config=style)
    except BrokenPipeError:  # `--help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of the pipe as it ends
        raise SystemExit(1) from None


def with_values(argv: list[str], settings: type) -> list[str]:
    """The flags, of which one that may be True and stands by itself gets that value: --resume means --resume=True."""
    names, full = _may_be_true(settings), []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        is_bare = word.startswith("--") and word[2:].replace("-", "_") in names and following.startswith("--")
        full.append(f"{word}=True" if is_bare else word)
    return full


def _may_be_true(settings: type) -> set[str]:
    """The names of a dataclass's fields, and of its groups', that may be True."""
    names = set()
    for name, hint in hints_of(settings).items():
        kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if dataclasses.is_dataclass(kind):
            names |= _may_be_true(kind)
        elif kind is bool or True in get_args(kind):
            names.add(name)
    return names


def run_command(main: Callable[[T], object], settings: type[T], prog: str):
    """Calls a command with its settings from the command line; ends with one line where the user can fix it."""
    try:
        config = parse_flags(settings(), None, prog)
        with steady_process(), as_input_errors():
            main(config)
    except InputError as error:
        sys.exit(printable(f"{prog}: {error}"))
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)


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
