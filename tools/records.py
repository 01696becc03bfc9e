"""The recorded runs in results/: read, put together by what they have in common, and averaged.

runs = read_records(Path("results"))["mnist", 6, "learned"]
spread(errors(best_line(runs), 1))    # "0.59 ± 0.06"
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

from config import Config, Mark, make_config, names_marked
from training.cli import InputError

# Settings that are no flags of a line: they have columns of their own, or change no number but by rounding.
ASIDE = {*names_marked(Mark.RESUME), "task", "num_glimpses", "random_seed", "compile"} - {"clip_grad_norm"}


def read_records(folder: Path, validated: bool = True) -> dict[tuple[str, int, str], list[dict]]:
    """The records that tests wrote, by task, glimpses and policy, of runs with validation or of those without.

    Raises:
        InputError: a file is no record.
    """
    records = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        try:
            record = {**json.loads(path.read_text()), "path": path}
            config = record["config"] = {**Config().flat(), **record["config"]}  # it lacks settings that came later
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is no record of a run ({error}): restore or remove it") from error
        if bool(config["valid_size"]) != validated:
            continue
        records[config["task"], config["num_glimpses"], config["policy"]].append(record)
    return records


def changed(config: dict, aside: set[str]) -> dict:
    """The settings by which a run differs from its task's own, but for those aside."""
    default = make_config(task=config["task"]).flat()
    return {name: config[name] for name in default if name not in aside and config[name] != default[name]}


def flags_of(config: dict) -> str:
    """The flags by which a run's settings differ from its task's own."""
    return " ".join(f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}"
                    for name, value in changed(config, ASIDE).items())  # fmt: skip


def by_default(runs: list[dict]) -> list[dict]:
    """Of the runs of a row, those by the task's own settings of today."""
    return [run for run in runs
            if not flags_of(run["config"])
            and run["config"]["epochs"] == make_config(task=run["config"]["task"]).training.epochs]  # fmt: skip


def alike(runs: list[dict]) -> list[list[dict]]:
    """The runs of each set of flags and number of epochs, the plainest first."""
    groups = defaultdict(list)
    for run in runs:
        flags = flags_of(run["config"])
        groups[flags.count("--"), flags, run["config"]["epochs"]].append(run)
    return [groups[key] for key in sorted(groups)]


def best_line(runs: list[dict]) -> list[dict]:
    """Of the runs of a row, those that are alike and have the lowest validation error."""
    return min(alike(runs), key=mean_valid_error)


def costs(runs: list[dict]) -> tuple[str, int, float]:
    """The flags of runs that are alike, as code, their epochs, and the minutes that one took."""
    flags = flags_of(runs[0]["config"])
    return f"`{flags}`" if flags else "-", runs[0]["config"]["epochs"], minutes_of(runs)


def minutes_of(runs: list[dict]) -> float:
    """The minutes that one of these runs takes, by the median of its epochs: some were halted, or shared their core."""
    seconds = [run["seconds_per_epoch"] for run in runs]
    return statistics.mean(statistics.median(each) * len(each) for each in seconds) / 60


def valid_errors(runs: list[dict]) -> list[float]:
    """The lowest validation errors, in %."""
    return [100 - run["best_valid_acc"] for run in runs]


def mean_valid_error(runs: list[dict]) -> float:
    return statistics.mean(valid_errors(runs))


def errors(runs: list[dict], m: int) -> list[float]:
    """Test errors with M = m, in %, of those runs that were tested so."""
    return [100 - run["tests"][f"M={m}"]["acc"] for run in runs if f"M={m}" in run["tests"]]


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
