"""What a sweep is asked to do: its flags, those of main.py that its trials share, and the ranges to search.

    sweep = parse(["--task=digits", "--trials=10", "--search", "std=log:0.02:0.3"])

Nothing heavy is imported here, so that --help answers at once.
"""

import ast
import contextlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_type_hints

import tyro

from config import FREE, PER_CALL, TASKS, Config, InputError, get_config

# What makes errors comparable, beside what changes no training (config.FREE).
NOT_SEARCHED = ("task", "dataset", "canvas_size", "num_clutter", "valid_size", "random_seed", "save_every_steps")


@dataclass(frozen=True)
class SweepConfig:
    """Searches settings by validation error. Beside the flags below it takes all of main.py's, which set what trials
    share (--task, --epochs, --data_dir and so on); main.py --help tells them."""

    search: tuple[str, ...] = ()
    """What to search, as FIELD=RANGE: std=uniform:0.02:0.3, init_lr=log:1e-4:3e-3 (evenly in the logarithm),
    hidden_size=int:64:512, optimizer=choice:adam,sgd."""
    seeds: int = 0
    """Instead of a search: train one setting with this many seeds, from random_seed on."""
    trials: int = 40
    """Trials to finish, over all workers and machines together."""
    sampler: Literal["random", "tpe"] = "random"
    """Random search, or the tree-structured Parzen estimator, which learns from the trials before."""
    prune: bool = True
    """Stop a trial whose error is above the median of the others at the same epoch, from a quarter of the epochs on,
    once five are done."""
    workers: int = 1
    """Processes on this machine, which share its cores; 0: be one worker, here, without bar and report, as a job of a
    queue."""
    storage: str = ""
    """Where the trials are kept: the path of a journal file, which may lie on a disk that machines share, or a
    database's URL, as postgresql+psycopg://user@host/name; empty: ckpt_dir/STUDY/journal.log."""
    study: str = ""
    """Name of the search, and of its folder in ckpt_dir and plot_dir; empty: made from the run's name."""
    heartbeat: float = 20.0
    """Seconds between a worker's signs of life; where five of its own are missing, its trial goes to another."""
    config: str = ""
    """TOML file of flags: trials = 40, task = "digits", and a table [search] with std = "log:0.02:0.3" and so on. Flags
    on the command line override it."""


class Range(NamedTuple):
    """What a field is searched over: from low to high, or among choices."""

    field: str
    kind: str  # uniform, log, int or choice
    low: float | int
    high: float | int
    choices: tuple

    def suggest(self, trial):
        """The trial's value, which the study's sampler draws."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.field, self.choices)
        suggest = trial.suggest_int if isinstance(self.low, int) else trial.suggest_float
        return suggest(self.field, self.low, self.high, log=self.kind == "log")


def parse_range(text: str, base: Config) -> Range:
    """Reads FIELD=KIND:..., and tries the ends or choices with the other settings.

    Raises:
        InputError: it is none, or a value is not allowed.
    """
    field, _, rest = text.partition("=")
    kind, _, rest = rest.partition(":")
    known = [f.name for f in fields(Config) if f.name not in (*FREE, *NOT_SEARCHED)]
    if field not in known:
        why = "is the same in all trials" if hasattr(base, field) else "is no flag of main.py"
        raise InputError(f"search {text}: {field} {why}; what can be searched: {', '.join(known)}")
    if kind == "choice" and rest:
        choices = tuple(_typed(base, field, word) for word in rest.split(","))
        if len(set(choices)) < len(choices):
            raise InputError(f"search {text}: a choice stands there twice")
        return Range(field, kind, 0, 0, choices)
    if kind not in ("uniform", "log", "int") or rest.count(":") != 1:
        raise InputError(f"search {text}: write {field}=uniform:LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH or choice:A,B")
    low, high = (_typed(base, field, word) for word in rest.split(":"))
    if any(isinstance(end, str | bool | None) for end in (low, high)):
        raise InputError(f"search {text}: a range runs between numbers; write {field}=choice:A,B")
    whole = get_type_hints(Config)[field] is not float
    if whole != (kind == "int") and not (whole and kind == "log"):
        raise InputError(
            f"search {text}: {field} takes {'whole numbers: int' if whole else 'any number: uniform'} or log"
        )
    if not low < high or (kind == "log" and low <= 0):
        raise InputError(f"search {text}: the range is empty, or below what a logarithm takes")
    return Range(field, kind, *((low, high) if whole else (float(low), float(high))), ())


def _typed(base: Config, field: str, word: str):
    """The word as text where the field takes that, else as a number, True, False or None."""
    with contextlib.suppress(InputError):
        return getattr(replace(base, **{field: word}), field)
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word
    return getattr(replace(base, **{field: value}), field)


class Sweep(NamedTuple):
    """A search as the command line asks for it."""

    flags: SweepConfig
    argv: list[str]  # what they were read from
    base: Config  # what the trials share
    ranges: list[Range]  # empty where seeds are tried
    study: str

    @property
    def folder(self) -> Path:
        return Path(self.base.ckpt_dir) / self.study

    @property
    def total(self) -> int:
        return self.flags.seeds or self.flags.trials

    def trial_config(self, slot: int, settings: dict) -> Config:
        """The settings of the trial that first had this number; its folder is the same whoever goes on with it.

        Raises:
            InputError: the settings do not go together.
        """
        folders = {
            name: str(Path(getattr(self.base, name)) / self.study) for name in ("ckpt_dir", "logs_dir", "plot_dir")
        }
        return replace(self.base, run_name=f"trial_{slot}", **folders, **settings)


def parse(argv: list[str]) -> Sweep:
    """Reads the command line, and the TOML file that it may name.

    Raises:
        InputError: a value is not allowed.
        SystemExit: after --help, or a flag that does not exist or does not parse (tyro prints why).
    """
    flags, rest = _parse_flags(argv)
    if flags.config:
        flags, rest = _parse_flags([*_flags_of(Path(flags.config)), *argv])
    base = get_config(rest)
    for name in PER_CALL:
        default = next(field.default for field in fields(Config) if field.name == name)
        if not name.endswith("_dir") and getattr(base, name) != default:
            raise InputError(f"{name}={getattr(base, name)}: a sweep sets this itself, leave the flag out")
    for name, least in (("trials", 1), ("seeds", 0), ("workers", 0)):
        if getattr(flags, name) < least:
            raise InputError(f"{name}={getattr(flags, name)} is not allowed: it must be at least {least}")
    if not flags.heartbeat > 0:
        raise InputError(f"heartbeat={flags.heartbeat} is not allowed: it must be above 0")
    if bool(flags.seeds) == bool(flags.search):
        raise InputError("name either what to search, as --search std=log:0.02:0.3, or --seeds=5")
    ranges = [parse_range(text, base) for text in flags.search]
    preset = Config(task=base.task, **TASKS[base.task])
    for part in ranges:
        if getattr(base, part.field) != getattr(preset, part.field):
            raise InputError(f"{part.field} is searched: leave --{part.field}= out")
    if len({part.field for part in ranges}) < len(ranges):
        raise InputError(f"search {' '.join(flags.search)}: a field stands there twice")
    study = flags.study or f"{base.name}_{'seeds' if flags.seeds else 'sweep'}"
    if Path(study).name != study or study == "..":
        raise InputError(f"study={study} is not allowed: it must be one folder name, without slashes")
    return Sweep(flags, argv, base, ranges, study)


def _parse_flags(argv: list[str]) -> tuple[SweepConfig, list[str]]:
    """A sweep's own flags, and those that are left for main.py's parser."""
    return tyro.cli(
        SweepConfig, args=argv, prog="sweep.py", use_underscores=True, return_unknown_args=True,
        config=(tyro.conf.FlagConversionOff,),
    )  # fmt: skip


def _flags_of(path: Path) -> list[str]:
    """The flags that a TOML file stands for."""
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    try:
        settings = tomllib.loads(path.read_text())
        search = settings.pop("search", {}).items()
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a sweep's settings ({error})") from error
    search = ["--search", *(f"{name}={text}" for name, text in search)] if search else []
    return [*(f"--{name}={value}" for name, value in settings.items()), *search]
