"""What came out of a sweep: a table, plots, and the command that trains the best setting again.

report(sweep, study)    # after `open_study`; writes report.md, results.json and PNGs into the sweep's folder
"""

import io
import json
import shlex
import statistics
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from runs import surroundings, write_whole
from sweep_config import Sweep
from sweep_trials import finished, flags_of, slot_of

SHOWN = 10  # trials in the table


def report(sweep: Sweep, study: optuna.Study):
    """Prints the best trials and writes all that is known of the sweep into its folder.

    Raises:
        InputError: a file cannot be written.
    """
    trials = sorted(finished(study), key=rank)
    plots = [] if sweep.flags.seeds else draw(study, sweep.folder)
    lines = [*summary(sweep, trials), "", *table(sweep, trials[:SHOWN] if sweep.ranges else trials)]
    print("\n".join(lines))
    pictures = [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots]
    write_whole(sweep.folder / "report.md", "\n\n".join(["\n".join(lines), *pictures, ""]).encode())
    write_whole(sweep.folder / "results.json", (json.dumps(record(sweep, trials), indent=2) + "\n").encode())
    print(f"[*] Report in {sweep.folder}: {', '.join(['report.md', 'results.json', *(path.name for path in plots)])}")


def rank(trial: FrozenTrial) -> tuple:
    """Complete trials first, the lowest error first."""
    return trial.state != TrialState.COMPLETE, trial.value is None, trial.value, slot_of(trial)


def summary(sweep: Sweep, trials: list[FrozenTrial]) -> list[str]:
    """How many trials, how good, and the command of the best; trials come best first."""
    complete = [trial.value for trial in trials if trial.state == TrialState.COMPLETE]
    hours = sum(trial.user_attrs.get("seconds", 0) for trial in trials) / 3600
    lines = [f"{len(trials)} trials, {len(trials) - len(complete)} of them pruned, {hours:.2f} hours of training."]
    if complete and sweep.flags.seeds:
        spread = f" ± {statistics.stdev(complete):.3f}" if len(complete) > 1 else ""
        lines.append(f"Validation error over {len(complete)} seeds: {statistics.mean(complete):.3f}{spread} %.")
    elif complete:
        lines += [
            f"Best validation error {complete[0]:.3f} %. To train that again:",
            "",
            f"    {command(sweep, trials[0])}",
        ]
    return lines


def command(sweep: Sweep, trial: FrozenTrial) -> str:
    """The command line that trains a trial's settings again, as a run of its own."""
    config = replace(sweep.base, **trial.user_attrs["settings"], run_name=f"{sweep.study}_best")
    return shlex.join(["python", "main.py", *flags_of(config)])


def table(sweep: Sweep, trials: list[FrozenTrial]) -> list[str]:
    """A Markdown row for each trial."""
    names = [part.field for part in sweep.ranges] or ["random_seed"]
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


def record(sweep: Sweep, trials: list[FrozenTrial]) -> dict:
    """All that the report depends on; the storage's address, which may hold a password, is left out."""
    around = surroundings()
    around["versions"]["optuna"] = optuna.__version__
    around["command"] = shlex.join(["python", "sweep.py", *(word for word in sweep.argv if "://" not in word)])
    return {
        "study": sweep.study,
        "search": sweep.flags.search,
        "sampler": sweep.flags.sampler,
        "prune": sweep.flags.prune,
        "shared_settings": asdict(sweep.base),
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
    """Writes what Optuna draws of the complete trials, and returns the paths; too few trials make no picture."""
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
            warnings.simplefilter("ignore")  # each tells that Optuna may yet change it
            picture(study, target_name="Best validation error, %")
        figure = plt.gcf()
        figure.set_size_inches(9, 5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        paths.append(folder / f"{name}.png")
        write_whole(paths[-1], buffer.getvalue())
    return paths
