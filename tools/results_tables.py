"""Writes the tables of results from the recorded runs in results/: of the README, and of all runs in results/README.md.

    cp ckpt/mine/test.json results/mnist_6_seed1.json    # what tests left beside a run's checkpoints
    make tables

A line is the mean over the runs that differ in nothing but their seed. The numbers beside it were published or quoted
by others.
"""

import json
import statistics
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from config import BEFORE, FREE_ON_RESUME, TASKS, Config

ROOT = Path(__file__).parent
BEGIN, END = "<!-- {}: written by tables.py -->\n", "<!-- end of {} -->"
# Settings that are no flags of a line: they have columns of their own, or change no number but by rounding.
ASIDE = {*FREE_ON_RESUME, "task", "num_glimpses", "random_seed", "compile"} - {"clip_grad_norm"}
# Settings that make another model; all others say how it is trained.
MODEL = ("core", "scan_radius", "glimpse_hidden", "locator_hidden", "first_location")
# What the summary marks, as the paper's model of images differs in it.
MARKS = {("first_location", "centre"): "c", ("first_location", "learned"): "p", ("core", "lstm"): "l"}


class Row(NamedTuple):
    """An experiment, and what others found in it: test errors in %."""

    task: str
    glimpses: int
    policy: str = "learned"
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
    Row("mnist", 6, "scan"),
    Row("mnist", 6, "random"),
    Row("mnist", 7, nips=1.07, others=f"{TORCH} 0.85"),
    Row("fashion", 6),
    Row("translated60", 4, arxiv=2.29, nips=1.54, others=f"{TFRAM} 1.54"),
    Row("translated60", 6, arxiv=1.86, nips=1.22, others=f"{TFRAM} 1.08"),
    Row("translated60", 8, arxiv=1.84, nips=1.20, others=f"{TFRAM} 0.94; {TORCH} (7 glimpses) 0.92"),
    Row("translated60", 8, "oracle"),
    Row("cluttered60", 4, arxiv=7.1, nips=4.96, others=f"{TFRAM} 5.15"),
    Row("cluttered60", 6, nips=4.08, others=f"{TFRAM} 3.33"),
    Row("cluttered60", 8, arxiv=5.23, nips=4.04, others=f"{TFRAM} 2.63"),
    Row("cluttered60", 8, "random", nips=14.4),
    Row("cluttered60", 8, "oracle"),
    Row("cluttered100", 4, arxiv=14.95, nips=9.41, others=f"{TFRAM} 14.86"),
    Row("cluttered100", 6, arxiv=11.58, nips=8.31, others=f"{TFRAM} 8.3"),
    Row("cluttered100", 8, arxiv=10.83, others=f"{TFRAM} 5.9"),
)  # fmt: skip


def read_records(folder: Path) -> dict[tuple[str, int, str], list[dict]]:
    """The records that tests wrote, by task, glimpses and policy."""
    records = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        config = record["config"] = {**BEFORE, **record["config"]}
        records[config["task"], config["num_glimpses"], config["policy"]].append(record)
    return records


def flags_of(config: dict) -> str:
    """The flags by which a run's settings differ from its task's own."""
    default = asdict(Config(task=config["task"], **TASKS[config["task"]]))
    changed = {name: config[name] for name in default if name not in ASIDE and config[name] != default[name]}
    return " ".join(f"--{name}={value:g}" if isinstance(value, float) else f"--{name}={value}"
                    for name, value in changed.items())  # fmt: skip


def results_table(folder: Path, pick=lambda lines: lines) -> str:
    """Every row of the paper, and ours: Markdown.

    Args:
        folder: of the records.
        pick: which of the lines of a row are shown, each a list of runs.
    """
    heads = ("task", "glimpses", "flags", "seeds", "epochs", "minutes a run", "validation", "**test, M = 1**",
             "test, M = 10", "paper, arXiv", "paper, NIPS", "others")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    records = read_records(folder)
    for row in ROWS:
        published = [number(row.arxiv), number(row.nips), row.others or "-"]
        lines_of_row = pick(alike(records[row.task, row.glimpses, row.policy]))
        for ours in [numbers(runs) for runs in lines_of_row] or [["-"] * 7]:
            lines.append(f"| {' | '.join([row.task, str(row.glimpses), *ours, *published])} |")
    return "\n".join(lines) + "\n"


def summary_table(folder: Path) -> str:
    """The lowest error of each row beside the paper's: Markdown."""
    records = read_records(folder)
    rows = [row for row in ROWS if row.policy == "learned" and records[row.task, row.glimpses, row.policy]]
    counts = sorted({row.glimpses for row in rows})
    lines = [f"| glimpses | {' | '.join(map(str, counts))} |", "|" + " --- |" * (1 + len(counts))]
    for task in dict.fromkeys(row.task for row in rows):
        cells = {row.glimpses: beside_paper(row, records[row.task, row.glimpses, row.policy])
                 for row in rows if row.task == task}  # fmt: skip
        lines.append(f"| {task} | {' | '.join(cells.get(count, '') for count in counts)} |")
    return "\n".join(lines) + "\n"


def beside_paper(row: Row, runs: list[dict]) -> str:
    """Test error, M = 1, of the line with the lowest validation error, and the paper's; bold unless that is lower."""
    best = min(alike(runs), key=mean_valid_error)
    error = statistics.mean(errors(best, 1))
    published = row.nips or row.arxiv
    cell = f"{error:.2f}" if published and published < error else f"**{error:.2f}**"
    marks = "".join(mark for (name, value), mark in MARKS.items() if best[0]["config"][name] == value)
    cell += f"<sup>{marks}</sup>" if marks else ""
    source = "" if row.nips else "arXiv "
    return f"{cell} ({source}{published:.2f})" if published else cell


def pace_table(folder: Path) -> str:
    """When the default MNIST runs reached the paper's error on validation: Markdown."""
    lines = [
        "| validation error at or under | runs that reached it | epochs | seconds of training |",
        "|" + " --- |" * 4,
    ]
    runs = [run for run in read_records(folder)["mnist", 6, "learned"]
            if not flags_of(run["config"]) and run["config"]["epochs"] == Config.epochs]  # fmt: skip
    for bound in (1.29, 1.12):
        reached = []
        for run in runs:
            under = [i for i, acc in enumerate(run["valid_acc_per_epoch"], 1) if 100 - acc <= bound]
            reached += [(min(under), sum(run["seconds_per_epoch"][: min(under)]))] if under else []
        epochs, seconds = (spread(values) for values in zip(*reached, strict=True)) if reached else ("-", "-")
        lines.append(f"| {bound} % | {len(reached)} of {len(runs)} | {epochs} | {seconds} |")
    return "\n".join(lines) + "\n"


def alike(runs: list[dict]) -> list[list[dict]]:
    """The runs of each set of flags and number of epochs, the plainest first."""
    groups = defaultdict(list)
    for run in runs:
        flags = flags_of(run["config"])
        groups[flags.count("--"), flags, run["config"]["epochs"]].append(run)
    return [groups[key] for key in sorted(groups)]


def best_of_each_model(lines: list[list[dict]]) -> list[list[dict]]:
    """Of the lines that train the same model, the one with the lowest validation error."""
    worst_first = sorted(lines, key=mean_valid_error, reverse=True)
    best = {tuple(runs[0]["config"][name] for name in MODEL): runs for runs in worst_first}
    return [runs for runs in lines if runs in best.values()]


def numbers(runs: list[dict]) -> list[str]:
    """What a line says of its runs, which are alike."""
    flags, epochs = flags_of(runs[0]["config"]), runs[0]["config"]["epochs"]
    minutes = statistics.mean(sum(run["seconds_per_epoch"]) for run in runs) / 60
    valid = spread(valid_errors(runs))
    single, several = (spread(errors(runs, m)) for m in (1, 10))
    counts = f"`{flags}`" if flags else "-", f"{len(runs)}", f"{epochs}", f"{minutes:.1f}"
    return [*counts, valid, f"**{single}**", several]


def valid_errors(runs: list[dict]) -> list[float]:
    """The lowest validation errors, in %."""
    return [100 - run["best_valid_acc"] for run in runs]


def mean_valid_error(runs: list[dict]) -> float:
    return statistics.mean(valid_errors(runs))


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


def with_tables(readme: str, report: str, folder: Path) -> tuple[str, str]:
    """The README with the best, the best of each model and the pace, and the report of all runs with every line."""
    readme = with_table(readme, "summary", summary_table(folder))
    readme = with_table(readme, "results", results_table(folder, best_of_each_model))
    return with_table(readme, "pace", pace_table(folder)), with_table(report, "results", results_table(folder))


if __name__ == "__main__":
    pages = ROOT / "README.md", ROOT / "results" / "README.md"
    for page, text in zip(pages, with_tables(*(page.read_text() for page in pages), ROOT / "results"), strict=True):
        page.write_text(text)
