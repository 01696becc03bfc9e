"""Writes the tables of results from the recorded runs in results/, and the recipes that repeat the best of them.

    cp ckpt/mine/test.json results/mnist_6_seed1.json    # what tests left in a run's folder
    make tables

A line is the mean over the runs that differ in nothing but their seed.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from config import CallConfig, MachineConfig, ModelConfig, make_config, names_of
from tools.published import ROWS, Row
from tools.records import (
    ASIDE,
    alike,
    best_line,
    by_default,
    changed,
    costs,
    errors,
    mean_valid_error,
    minutes_of,
    read_records,
    spread,
    valid_errors,
)
from training.cli import InputError, PathText, Settings, run_command

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- {}: written by tools/results_tables.py -->\n", "<!-- end of {} -->"
# Settings that are no part of a recipe: each run has its own, or they change no number but by rounding.
NO_RECIPE = {*names_of(CallConfig, MachineConfig), "task", "data_dir", "num_workers", "random_seed", "M", "compile"}
# Recipes of their own, by the names of their records: NAME_seed1.json and so on.
NAMED = {
    "original": "The original project's training, as near as this model gets: MNIST, 6 glimpses",
    "paper": "The paper's training, as far as it is known: MNIST, 6 glimpses, momentum, batches of 20",
}
# What the summary marks, as the paper's model of images differs in it.
MARKS = {("first_location", "centre"): "c", ("first_location", "learned"): "p", ("core", "lstm"): "l",
         ("glimpse_hidden", 256): "w", ("reinforce_core", True): "r"}  # fmt: skip


def results_table(folder: Path, pick=lambda lines: lines) -> str:
    """Every row of the paper, and ours: Markdown.

    Args:
        folder: of the records.
        pick: which of the lines of a row are shown, each a list of runs.
    """
    heads = ("task", "glimpses", "flags", "seeds", "epochs", "minutes a run", "validation", "**test, M = 1**",
             "test, M = 10", "on all images", "paper, arXiv", "paper, NIPS", "others")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    records, on_all = read_records(folder), read_records(folder, validated=False)
    for row in ROWS:
        published = [number(row.arxiv), number(row.nips), row.others or "-"]
        lines_of_row = pick(alike(records[row.task, row.glimpses, row.policy]))
        whole = on_all[row.task, row.glimpses, row.policy]
        for ours in [numbers(runs, whole) for runs in lines_of_row] or [["-"] * 8]:
            lines.append(f"| {' | '.join([row.task, str(row.glimpses), *ours, *published])} |")
    return "\n".join(lines) + "\n"


def summary_table(folder: Path) -> str:
    """The best error of each row with its recipe, and the paper's; what a task's own settings give: Markdown."""
    records = read_records(folder)
    rows = [row for row in ROWS if row.policy == "learned" and records[row.task, row.glimpses, row.policy]]
    counts = sorted({row.glimpses for row in rows})
    heads = ["glimpses", *map(str, counts), "`--task=TASK` alone", "`--recipe=TASK_best`"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for task in dict.fromkeys(row.task for row in rows):
        cells, minutes = {}, "-"
        for row in [row for row in rows if row.task == task]:
            runs = records[row.task, row.glimpses, row.policy]
            cells[row.glimpses] = best_cell(row, runs)
            if recipe_name(row) == f"{task}_best":
                minutes = f"{costs(best_line(runs))[2]:.0f} min"
        line = [task, *(cells.get(count, "") for count in counts), own_settings(task, records), minutes]
        lines.append(f"| {' | '.join(line)} |")
    return "\n".join(lines) + "\n"


def best_cell(row: Row, runs: list[dict]) -> str:
    """Test error, M = 1, of the line with the lowest validation error, and the paper's; bold if that is no lower."""
    best = best_line(runs)
    error = statistics.mean(errors(best, 1))
    published = row.nips or row.arxiv
    cell = f"[{spread(errors(best, 1))}](recipes/{recipe_name(row)}.toml)"
    cell = f"**{cell}**" if published and error <= published else cell
    marks = "".join(mark for (name, value), mark in MARKS.items() if best[0]["config"][name] == value)
    cell += f"<sup>{marks}</sup>" if marks else ""
    source = "" if row.nips else "arXiv "
    return f"{cell} ({source}{published:.2f})" if published else cell


def own_settings(task: str, records: dict) -> str:
    """Test error, M = 1, and minutes by a task's own settings."""
    runs = by_default(records[task, make_config(task=task).model.num_glimpses, "learned"])
    return f"{spread(errors(runs, 1))} in {costs(runs)[2]:.0f} min" if runs else "-"


def canvases_table(folder: Path) -> str:
    """What the canvases' own settings give, beside the paper and the best recipe: Markdown."""
    heads = ("task", "glimpses", "seeds", "minutes a run", "validation", "**test, M = 1**", "test, M = 10",
             "paper, arXiv", "paper, NIPS", "best recipe")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    records = read_records(folder)
    for row in ROWS:
        runs = records[row.task, row.glimpses, row.policy]
        if row.policy == "learned" and make_config(task=row.task).data.canvas_size and runs:
            own = by_default(runs)
            _, seeds, _, minutes, valid, single, several, _ = numbers(own, []) if own else ["-"] * 8
            best = f"[{spread(errors(best_line(runs), 1))}](../recipes/{recipe_name(row)}.toml)"
            ours, published = (seeds, minutes, valid, single, several), (number(row.arxiv), number(row.nips))
            lines.append(f"| {' | '.join([row.task, str(row.glimpses), *ours, *published, best])} |")
    return "\n".join(lines) + "\n"


def recipe_name(row: Row) -> str:
    """TASK_best for a task's usual number of glimpses, else TASK_GLIMPSES."""
    usual = make_config(task=row.task).model.num_glimpses
    return f"{row.task}_{'best' if row.glimpses == usual else row.glimpses}"


def recipes(folder: Path) -> dict[str, str]:
    """The recipe of each number of the summary, of the original project's training and of the paper's: TOML by name."""
    records = read_records(folder)
    files = {}
    for row in ROWS:
        runs = records[row.task, row.glimpses, row.policy]
        if row.policy == "learned" and runs:
            title = f"{row.task}, {row.glimpses} glimpses"
            files[recipe_name(row)] = recipe(recipe_name(row), title, best_line(runs))
    for name, title in NAMED.items():
        runs = [run for group in records.values() for run in group if run["path"].name.startswith(f"{name}_seed")]
        if runs:
            files[name] = recipe(name, title, runs)
    return files


def recipe(name: str, title: str, runs: list[dict]) -> str:
    """A recipe that repeats these runs, which differ in their seed alone."""
    config = runs[0]["config"]
    seeds = sorted(run["config"]["random_seed"] for run in runs)
    lines = [
        f"# {title}.",
        f"# Test error {spread(errors(runs, 1))} % (one rollout an image), validation {spread(valid_errors(runs))} %.",
        f"# Seeds {', '.join(map(str, seeds))}; {minutes_of(runs):.0f} minutes a run.",
        "#",
        f"#     python main.py --recipe={name}",
        "#",
        *(f"# Record: results/{run['path'].name}" for run in runs),
        f'task = "{config["task"]}"',
    ]
    lines += [f"{key} = {json.dumps(value)}" for key, value in changed(config, NO_RECIPE).items()]
    return "\n".join(lines) + "\n"


def pace_table(folder: Path) -> str:
    """When the default MNIST runs reached the paper's error on validation: Markdown."""
    lines = [
        "| validation error at or under | runs that reached it | epochs | seconds of training |",
        "|" + " --- |" * 4,
    ]
    runs = by_default(read_records(folder)["mnist", 6, "learned"])
    for bound in (1.29, 1.12):
        reached = []
        for run in runs:
            under = [i for i, acc in enumerate(run["valid_acc_per_epoch"], 1) if 100 - acc <= bound]
            reached += [(min(under), sum(run["seconds_per_epoch"][: min(under)]))] if under else []
        epochs, seconds = (spread(values) for values in zip(*reached, strict=True)) if reached else ("-", "-")
        lines.append(f"| {bound} % | {len(reached)} of {len(runs)} | {epochs} | {seconds} |")
    return "\n".join(lines) + "\n"


def games_table(folder: Path) -> str:
    """What the trainings of the game came to: Markdown."""
    heads = ("flags", "seeds", "million frames", "minutes a run", "% caught, validation", "**% caught, test**")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    records = read_records(folder)
    for runs in alike([run for key, group in records.items() if key[0] == "catch" for run in group]):
        flags, epochs, minutes = costs(runs)
        config = runs[0]["config"]
        frames = epochs * config["games_per_epoch"] * config["num_glimpses"] / 1e6
        valid = spread([run["best_valid_acc"] for run in runs])
        test = spread([run["tests"]["M=1"]["acc"] for run in runs])
        lines.append(f"| {flags} | {len(runs)} | {frames:.1f} | {minutes:.0f} | {valid} | **{test}** |")
    return "\n".join(lines) + "\n"


def best_of_each_model(lines: list[list[dict]]) -> list[list[dict]]:
    """Of the lines that train the same model, whatever its std, the one with the lowest validation error."""
    worst_first = sorted(lines, key=mean_valid_error, reverse=True)
    sizes = [name for name in names_of(ModelConfig) if name != "std"]
    best = {tuple(runs[0]["config"][name] for name in sizes): runs for runs in worst_first}
    return [runs for runs in lines if runs in best.values()]


def numbers(runs: list[dict], on_all: list[dict]) -> list[str]:
    """What a line says of its runs, which are alike, and of those on all images with the same settings and epochs."""
    flags, epochs, minutes = costs(runs)
    valid = spread(valid_errors(runs))
    single, several = (spread(errors(runs, m)) for m in (1, 10))
    aside = ASIDE - {"epochs"} | {"valid_size"}
    alike_on_all = [run for run in on_all if changed(run["config"], aside) == changed(runs[0]["config"], aside)]
    whole = spread(errors(alike_on_all, 1))
    return [flags, f"{len(runs)}", f"{epochs}", f"{minutes:.1f}", valid, f"**{single}**", several, whole]


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def with_table(page: str, name: str, table: str) -> str:
    """The page with this table in its place; raises ValueError if the page has none."""
    begin, end = BEGIN.format(name), END.format(name)
    if begin not in page or end not in page:
        raise ValueError(f"a page lacks the marks of its table {name}")
    head, _, rest = page.partition(begin)
    return head + begin + table + end + rest.partition(end)[2]


def with_tables(pages: dict[str, str], folder: Path) -> dict[str, str]:
    """The pages with their tables: the best of each row; the best of each model, the canvases' own settings,
    and the pace; games; every line.

    Args:
        pages: their texts, by the names in PAGES.
        folder: of the records.
    """
    tables = {
        "README.md": {"summary": summary_table(folder)},
        "docs/results.md": {
            "results": results_table(folder, best_of_each_model),
            "canvases": canvases_table(folder),
            "pace": pace_table(folder),
        },
        "docs/catch.md": {"games": games_table(folder)},
        "results/README.md": {"results": results_table(folder)},
    }
    for page, own in tables.items():
        for name, table in own.items():
            pages = {**pages, page: with_table(pages[page], name, table)}
    return pages


PAGES = ("README.md", "docs/results.md", "docs/catch.md", "results/README.md")


@dataclass(frozen=True)
class TablesConfig(Settings):
    """Writes the tables of README, docs and results, and the recipes, from the recorded runs."""

    folder: PathText = str(ROOT / "results")
    """Folder of the records; of another than results/ the table of all lines is printed, and nothing is written."""


def main(config: TablesConfig):
    """Writes them, or prints that of another folder.

    Raises:
        InputError: the folder holds no records, or a file that is none.
    """
    folder = Path(config.folder)
    if not read_records(folder):
        raise InputError(f"{folder} holds no records: name the folder of runs' test.json files")
    if folder.resolve() != ROOT / "results":
        print(results_table(folder))
        return
    for name, text in recipes(folder).items():
        (ROOT / "recipes" / f"{name}.toml").write_text(text)
    for page, text in with_tables({page: (ROOT / page).read_text() for page in PAGES}, folder).items():
        (ROOT / page).write_text(text)


if __name__ == "__main__":
    run_command(main, TablesConfig, prog="tools.results_tables")
