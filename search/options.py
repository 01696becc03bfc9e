"""What a search does: its own flags, those of main.py that its trials share, and the ranges to search.

    search = parse(["--task=digits", "--trials=10", "--search", "std=log:0.02:0.3"])

Imports nothing heavy, so that `--help` answers at once.
"""

import ast
import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from config import CallConfig, Config, Mark, get_config, names_marked, names_of
from training.cli import InputError, Names, PathText, Settings, read_toml, require, with_values


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Searches settings by validation error. Besides the flags below it takes all of main.py's, which set what the
    trials share (--task, --epochs, --data_dir and so on); python main.py --help lists them."""

    search: Names = ()
    """What to search, as FIELD=RANGE: std=uniform:0.02:0.3, init_lr=log:1e-4:3e-3 (evenly in the logarithm),
    hidden_size=int:64:512, optimizer=choice:adam,sgd."""
    seeds: int = 0
    """Instead of a search: train one setting with this many seeds, from random_seed on."""
    trials: int = 40
    """Trials to finish, over all workers and machines together."""
    sampler: Literal["random", "tpe"] = "random"
    """Random search, or the tree-structured Parzen estimator, which learns from the trials before."""
    prune: bool = True
    """Stop a trial whose error is above the median of the others at the same epoch, after a quarter of the epochs and
    once five trials are complete."""
    workers: int = 1
    """Processes on this machine, which divide its cores among them; 0: be one worker in the foreground, without a bar
    and a report, as a job of a queue."""
    storage: PathText = ""
    """Where the trials are kept: the path of a journal file, which may lie on a disk that machines share, or a
    database's URL, as postgresql+psycopg://user@host/name; empty: ckpt_dir/STUDY/journal.log."""
    study: str = ""
    """Name of the search, and of its folder in ckpt_dir, logs_dir and plot_dir; empty: made from the run's name."""
    heartbeat: float = 20.0
    """Seconds between a worker's signs of life; when five are missing, another worker continues its trial."""
    config: PathText = ""
    """TOML file of flags: trials = 40, task = "digits", and a table [search] with std = "log:0.02:0.3" and so on. Flags
    on the command line override it."""

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("trials", 1), ("seeds", 0), ("workers", 0)):
            require(self, name, getattr(self, name) >= least, f"at least {least}")
        require(self, "heartbeat", self.heartbeat > 0, "above 0")
        plain = Path(self.study).name == self.study and self.study != ".."
        require(self, "study", plain, "one folder name, without slashes")

    @property
    def searched(self) -> tuple[str, ...]:
        """What --search names."""
        return tuple(text for texts in self.search for text in texts)


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
    names = base.flat()
    searchable = [name for name in names if name not in names_marked(Mark.SHARED)]
    if field not in searchable:
        why = "is the same in all trials" if field in names else "is no flag of main.py"
        raise InputError(f"search {text}: {field} {why}; what can be searched: {', '.join(searchable)}")
    if kind == "choice" and rest:
        choices = tuple(_typed(base, field, word) for word in rest.split(","))
        if len(set(choices)) < len(choices):
            raise InputError(f"search {text}: name each choice once")
        return Range(field, kind, 0, 0, choices)
    if kind not in ("uniform", "log", "int") or rest.count(":") != 1:
        raise InputError(f"search {text}: write {field}=uniform:LOW:HIGH, log:LOW:HIGH, int:LOW:HIGH or choice:A,B")
    low, high = (_typed(base, field, word) for word in rest.split(":"))
    if any(isinstance(end, str | bool | None) for end in (low, high)):
        raise InputError(f"search {text}: a range runs between numbers; write {field}=choice:A,B")
    whole = isinstance(low, int)
    if whole != (kind == "int") and not (whole and kind == "log"):
        kinds = "whole numbers: int" if whole else "any number: uniform"
        raise InputError(f"search {text}: {field} takes {kinds} or log")
    if not low < high or (kind == "log" and low <= 0):
        raise InputError(f"search {text}: the range is empty, or has no logarithm")
    return Range(field, kind, low, high, ())


def _typed(base: Config, field: str, word: str):
    """The word as text if the field takes that, else as a number, True, False or None."""
    with contextlib.suppress(InputError):
        return base.replace(**{field: word}).flat()[field]
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        value = word
    return base.replace(**{field: value}).flat()[field]


class Search(NamedTuple):
    """A search as the command line asks for it."""

    flags: SearchConfig
    argv: list[str]  # what they were read from
    base: Config  # what the trials share
    ranges: list[Range]  # empty if seeds are tried
    study: str

    @property
    def folder(self) -> Path:
        return Path(self.base.call.ckpt_dir) / self.study

    @property
    def total(self) -> int:
        return self.flags.seeds or self.flags.trials

    def trial_config(self, slot: int, **settings) -> Config:
        """The settings of the trial that first had this number; its folder is the same whoever continues it.

        Raises:
            InputError: the settings do not go together.
        """
        call = self.base.call
        folders = {name: str(Path(getattr(call, name)) / self.study) for name in ("ckpt_dir", "logs_dir", "plot_dir")}
        return self.base.replace(run_name=f"trial_{slot}", **folders, **settings)


def parse(argv: list[str]) -> Search:
    """Reads the command line, and the TOML file that it may name.

    Raises:
        InputError: a value is not allowed.
        SystemExit: after --help, or a flag that does not exist or does not parse (tyro prints why).
    """
    flags, rest = _parse_flags(argv)
    if flags.config:
        flags, rest = _parse_flags([*_flags_in(Path(flags.config), with_ranges=not flags.search), *argv])
    base = get_config(rest)
    changed = changes(base)
    for name in names_of(CallConfig):
        if name in changed and not name.endswith("_dir"):
            raise InputError(f"{name}={changed[name]}: a search sets this itself, leave the flag out")
    if not base.data.valid_size:
        raise InputError("valid_size=0.0: trials are compared by their validation, leave the flag out")
    if bool(flags.seeds) == bool(flags.searched):
        raise InputError("name either what to search, as --search std=log:0.02:0.3, or --seeds=5")
    ranges = [parse_range(text, base) for text in flags.searched]
    for part in ranges:
        if part.field in changed:
            raise InputError(f"{part.field} is searched: leave --{part.field}= out")
    if len({part.field for part in ranges}) < len(ranges):
        raise InputError(f"search {' '.join(flags.searched)}: name each field once")
    return Search(flags, argv, base, ranges, flags.study or f"{base.name}_{'seeds' if flags.seeds else 'sweep'}")


def _parse_flags(argv: list[str]) -> tuple[SearchConfig, list[str]]:
    """A search's own flags, and those that are left for main.py's parser."""
    argv = with_values(argv, SearchConfig)
    return tyro.cli(
        SearchConfig, args=argv, prog="search", use_underscores=True, return_unknown_args=True,
        config=(tyro.conf.FlagConversionOff,),
    )  # fmt: skip


def _flags_in(path: Path, with_ranges: bool) -> list[str]:
    """The flags that a TOML file stands for, with what it searches or without."""
    settings = read_toml(path)
    ranges = settings.pop("search", {})
    if not isinstance(ranges, dict):
        raise InputError(f'{path}: write search as a table, [search] with lines as std = "log:0.02:0.3"')
    search = ["--search", *(f"{name}={text}" for name, text in ranges.items())] if ranges and with_ranges else []
    return [*(f"--{name}={value}" for name, value in settings.items()), *search]


def flags_of(config: Config) -> list[str]:
    """The flags of main.py that give these settings."""
    return [*_named(config), *(f"--{name}={value}" for name, value in changes(config).items())]


def changes(config: Config) -> dict:
    """The settings that differ from the defaults of the task and the recipe."""
    defaults = get_config(_named(config)).flat()
    return {name: value for name, value in config.flat().items() if value != defaults[name]}


def _named(config: Config) -> list[str]:
    """The flags that set the defaults of the others."""
    return [f"--task={config.data.task}", *([f"--recipe={config.call.recipe}"] if config.call.recipe else [])]
