"""What came out of a search: a table, plots, and the command that trains the best setting again.

    report(search, open_study(search))

Writes report.md, results.json and the plots into the search's folder.
"""

import io
import json
import shlex
import statistics
import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.options import Search, flags_of
from search.storage import finished, slot_of
from training.checkpoint import write_whole
from training.run_folder import environment, without_password

SHOWN = 10  # trials in the table


def report(search: Search, study: optuna.Study):
    """Prints the best trials and writes all that is known of the search into its folder.

    Raises:
        InputError: a file cannot be written.
    """
    trials = sorted(finished(study), key=rank)
    plots = [] if search.flags.seeds else draw(study, search.folder)
    lines = [*summary(search, trials), "", *table(search, trials[:SHOWN] if search.ranges else trials)]
    print("\n".join(lines))
    pictures = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots]
    write_whole(search.folder / "report.md", "\n\n".join(["\n".join(lines), *pictures, ""]).encode())
    write_whole(search.folder / "results.json", (json.dumps(record(search, trials), indent=2) + "\n").encode())
    print(f"[*] Report in {search.folder}: {', '.join(['report.md', 'results.json', *(path.name for path in plots)])}")


def rank(trial: FrozenTrial) -> tuple:
    """Complete trials first, the lowest error first."""
    return trial.state != TrialState.COMPLETE, trial.value is None, trial.value, slot_of(trial)


def summary(search: Search, trials: list[FrozenTrial]) -> list[str]:
    """How many trials, how good, and the command of the best; trials come best first."""
    complete = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    hours = sum(trial.user_attrs.get("seconds", 0) for trial in trials) / 3600
    lines = [f"{len(trials)} trials, {len(trials) - len(complete)} of them pruned, {hours:.2f} hours of training."]
    if complete and search.flags.seeds:
        spread = f" ± {statistics.stdev(complete):.3f}" if len(complete) > 1 else ""
        lines.append(f"Validation error over {len(complete)} seeds: {statistics.mean(complete):.3f}{spread} %.")
    elif complete:
        lines += [
            f"Best validation error {complete[0]:.3f} %. To train that again:",
            "",
            f"    {command(search, trials[0])}",
        ]
    return lines


def command(search: Search, trial: FrozenTrial) -> str:
    """The command line that trains a trial's settings again, as a run of its own."""
    config = search.base.replace(**trial.user_attrs["settings"], run_name=f"{search.study}_best")
    return shlex.join(["python", "main.py", *flags_of(config)])


def table(search: Search, trials: list[FrozenTrial]) -> list[str]:
    """A Markdown row for each trial."""
    names = [part.field for part in search.ranges] or ["random_seed"]
    rows = [["trial", "validation error, %", "epochs", "minutes", *names, "note"]]
    rows.append(["---"] * len(rows[0]))
    for trial in trials:
        settings = trial.user_attrs["settings"]
        values = [
            f"{settings[name]:.4g}" if isinstance(settings[name], float) else str(settings[name]) for name in names
        ]
        error = "-" if trial.value is None else f"{trial.value:.3f}"
        minutes = f"{trial.user_attrs.get('seconds', 0) / 60:.1f}"
        rows.append(
            [str(slot_of(trial)), error, str(trial.last_step or 0), minutes, *values, trial.user_attrs.get("note", "")]
        )
    return [f"| {' | '.join(row)} |" for row in rows]


def record(search: Search, trials: list[FrozenTrial]) -> dict:
    """All that the report depends on."""
    around = environment()
    around["versions"]["optuna"] = optuna.__version__
    around["command"] = without_password(shlex.join(["python", "-m", "search", *search.argv]))
    return {
        "study": search.study,
        "search": search.flags.searched,
        "sampler": search.flags.sampler,
        "prune": search.flags.prune,
        "shared_settings": search.base.flat(),
        "trials": [
            {
                "slot": slot_of(trial),
                "state": trial.state.name,
                "valid_error": trial.value,
                "valid_error_per_epoch": [
                    trial.intermediate_values[step] for step in sorted(trial.intermediate_values)
                ],
                **{name: trial.user_attrs.get(name) for name in ("settings", "seconds", "note")},
            }
            for trial in trials
        ],
        "reported_with": around,
    }


def draw(study: optuna.Study, folder: Path) -> list[Path]:
    """Writes what Optuna draws of the complete trials, and returns the paths; for fewer than two trials, none."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as pictures

    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < 2:
        return []
    paths = []
    for name, picture in (
        ("importance", pictures.plot_param_importances),
        ("parallel_coordinate", pictures.plot_parallel_coordinate),
        ("history", pictures.plot_optimization_history),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each warns that Optuna may change it
            picture(study, target_name="Best validation error, %")
        figure = plt.gcf()
        figure.set_size_inches(9, 5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        paths.append(folder / f"{name}.png")
        write_whole(paths[-1], buffer.getvalue())
    return paths
