"""Writes the README's tables of results from the recorded runs in results/.

    cp ckpt/mine/test.json results/mnist_6_seed1.json    # what tests left beside a run's checkpoints
    make tables

A line is the mean over the runs of an experiment with one number of epochs; records in results/ of the same experiment
and epochs must differ in nothing but their seed. The numbers beside it were published or quoted by others.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from config import Config

ROOT = Path(__file__).parent
BEGIN, END = "<!-- {}: written by tables.py -->\n", "<!-- end of {} -->"
LEARNED, CENTRE = "learned", "learned, the paper's start"
LSTM = "learned, LSTM core"
MUON, LSTM_MUON = f"{LEARNED}, Muon", f"{LSTM}, Muon"
SCAN, RANDOM, ORACLE = "fixed scan", "random", "oracle"


class Row(NamedTuple):
    """An experiment, and what others found in it: test errors in %."""

    task: str
    glimpses: int
    policy: str = LEARNED
    arxiv: float | None = None  # the paper's first version on arXiv
    nips: float | None = None  # the paper as published at NIPS 2014
    others: str = ""


TORCH, TFRAM, ORIGINAL = "Torch blog", "tfRAM", "the original"
ROWS = (
    Row("mnist", 2, arxiv=6.27, nips=3.79),
    Row("mnist", 3, nips=1.51),
    Row("mnist", 4, arxiv=1.73, nips=1.54),
    Row("mnist", 5, nips=1.34),
    Row("mnist", 6, arxiv=1.29, nips=1.12, others=f"{ORIGINAL} 1.21"),
    Row("mnist", 7, nips=1.07, others=f"{TORCH} 0.85"),
    Row("mnist", 6, CENTRE, arxiv=1.29, nips=1.12, others=f"{ORIGINAL} 1.21"),
    Row("mnist", 6, SCAN),
    Row("mnist", 6, RANDOM),
    Row("fashion", 6),
    Row("translated60", 4, arxiv=2.29, nips=1.54),
    Row("translated60", 6, arxiv=1.86, nips=1.22),
    Row("translated60", 8, arxiv=1.84, nips=1.20, others=f"{TFRAM} 0.94; {TORCH} (7 glimpses) 0.92"),
    Row("translated60", 8, LSTM),
    Row("translated60", 8, ORACLE),
    Row("cluttered60", 4, arxiv=7.1, nips=4.96),
    Row("cluttered60", 6, nips=4.08),
    Row("cluttered60", 8, arxiv=5.23, nips=4.04, others=f"{TFRAM} 2.63"),
    Row("cluttered60", 8, MUON),
    Row("cluttered60", 8, LSTM),
    Row("cluttered60", 8, LSTM_MUON),
    Row("cluttered60", 8, RANDOM, nips=14.4),
    Row("cluttered60", 8, ORACLE),
    Row("cluttered100", 4, arxiv=14.95, nips=9.41),
    Row("cluttered100", 6, arxiv=11.58, nips=8.31),
    Row("cluttered100", 8, arxiv=10.83, others=f"{TFRAM} 5.9"),
    Row("cluttered100", 8, LSTM_MUON),
)  # fmt: skip


def read_records(folder: Path) -> dict[tuple[str, int, str], list[dict]]:
    """The records that tests wrote, by task, glimpses and kind."""
    records = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        config = record["config"]
        records[config["task"], config["num_glimpses"], kind_of(config)].append(record)
    return records


def kind_of(config: dict) -> str:
    """What a row calls the runs with these settings."""
    if config["policy"] != "learned":
        return {"scan": SCAN, "random": RANDOM, "oracle": ORACLE}[config["policy"]]
    kind = LEARNED if config["scan_radius"] else CENTRE
    if config.get("core") == "lstm":  # settings of runs before there was a choice have no core
        kind = LSTM
    return f"{kind}, Muon" if config["optimizer"] == "muon" else kind


def results_table(folder: Path) -> str:
    """Every row of the paper, and ours: Markdown."""
    heads = ("task", "glimpses", "where to look", "seeds", "epochs", "minutes a run", "validation", "**test, M = 1**",
             "test, M = 10", "paper, arXiv", "paper, NIPS", "others")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    records = read_records(folder)
    for row in ROWS:
        published = [number(row.arxiv), number(row.nips), row.others or "-"]
        for ours in [numbers(runs) for runs in by_epochs(records[row.task, row.glimpses, row.policy])] or [["-"] * 6]:
            lines.append(f"| {' | '.join([row.task, str(row.glimpses), row.policy, *ours, *published])} |")
    return "\n".join(lines) + "\n"


def pace_table(folder: Path) -> str:
    """When the default MNIST runs reached the paper's error on validation: Markdown."""
    lines = [
        "| validation error at or under | runs that reached it | epochs | seconds of training |",
        "|" + " --- |" * 4,
    ]
    runs = [run for run in read_records(folder)["mnist", 6, LEARNED] if run["config"]["epochs"] == Config.epochs]
    for bound in (1.29, 1.12):
        reached = []
        for run in runs:
            under = [i for i, acc in enumerate(run["valid_acc_per_epoch"], 1) if 100 - acc <= bound]
            reached += [(min(under), sum(run["seconds_per_epoch"][: min(under)]))] if under else []
        epochs, seconds = (spread(values) for values in zip(*reached, strict=True)) if reached else ("-", "-")
        lines.append(f"| {bound} % | {len(reached)} of {len(runs)} | {epochs} | {seconds} |")
    return "\n".join(lines) + "\n"


def by_epochs(runs: list[dict]) -> list[list[dict]]:
    """The runs of each number of epochs, fewest first."""
    groups = defaultdict(list)
    for run in runs:
        groups[run["config"]["epochs"]].append(run)
    return [groups[epochs] for epochs in sorted(groups)]


def numbers(runs: list[dict]) -> list[str]:
    """What a line says of its runs."""
    minutes = statistics.mean(sum(run["seconds_per_epoch"]) for run in runs) / 60
    valid = spread([100 - run["best_valid_acc"] for run in runs])
    single, several = (spread(errors(runs, m)) for m in (1, 10))
    return [f"{len(runs)}", f"{runs[0]['config']['epochs']}", f"{minutes:.1f}", valid, f"**{single}**", several]


def errors(runs: list[dict], m: int) -> list[float]:
    """Test errors with M = m, in %, of those runs that were tested so."""
    return [100 - run["tests"][f"M={m}"]["acc"] for run in runs if f"M={m}" in run["tests"]]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def spread(values: list[float]) -> str:
    """Mean and, of several, standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def with_table(page: str, name: str, table: str) -> str:
    """The page with this table in its place."""
    begin, end = BEGIN.format(name), END.format(name)
    head, _, rest = page.partition(begin)
    return head + begin + table + end + rest.partition(end)[2]


def with_tables(page: str, folder: Path) -> str:
    return with_table(with_table(page, "results", results_table(folder)), "pace", pace_table(folder))


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_tables(readme.read_text(), ROOT / "results"))
