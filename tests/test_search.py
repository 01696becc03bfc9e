"""A sweep draws from the ranges it is given, trains runs like any other, and says what came out."""

import json
import os
import re
import shlex
import statistics
import threading
from pathlib import Path

import pytest
from optuna.trial import TrialState
from test_trainer import assert_same

import data_loader
import sweep as sweep_command
from config import InputError, get_config
from main import run as run_main
from runs import load_checkpoint
from sweep_config import parse
from sweep_report import report
from sweep_trials import LOADER_FIELDS, Worker, finished, open_study, slot_of

STD = ["--search", "std=log:0.02:0.3"]


@pytest.fixture
def work(flags):
    """Runs a sweep of short trainings in this process."""

    def call(*more: str):
        sweep = parse([*flags, "--epochs=2", "--workers=0", *more])
        sweep_command.main(sweep)
        return sweep, open_study(sweep)

    return call


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_lie_in_their_ranges_and_random_search_tries_the_same_whoever_draws(flags, sampler, monkeypatch):
    def suggest(worker, trial, slot):
        return {part.field: part.suggest(trial) for part in worker.sweep.ranges}["std"]

    monkeypatch.setattr(Worker, "train", suggest)
    search = ["--search", "std=log:0.02:0.3", "loc_hidden=int:3:5", "init_lr=uniform:0.1:0.2",
              "shuffle=choice:True,False", "glimpse_hidden=log:1:1000", "lr_patience=choice:None,3"]  # fmt: skip
    drawn = {}
    for name, workers in (("alone", 1), ("together", 3), ("again", 1)):
        seed = ["--random_seed=2"] * (name == "again")
        sweep = parse([*flags, f"--study={name}", f"--sampler={sampler}", "--trials=20", *search, *seed])
        threads = [threading.Thread(target=Worker(sweep, open_study(sweep)).work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        trials = [trial for trial in open_study(sweep).trials if trial.state == TrialState.COMPLETE]
        drawn[name] = [trial.params for trial in trials]
    for params in (params for group in drawn.values() for params in group):
        assert 0.02 <= params["std"] <= 0.3 and params["loc_hidden"] in (3, 4, 5) and 0.1 <= params["init_lr"] <= 0.2
        assert params["shuffle"] in (True, False) and params["lr_patience"] in (None, 3)
    alone = drawn["alone"]
    assert len({params["std"] for params in alone}) == 20  # no two alike
    assert statistics.median(params["glimpse_hidden"] for params in alone) < 150  # evenly it would be 500
    assert alone[0] != drawn["again"][0]
    together = {params["std"] for params in drawn["together"]}
    if sampler == "random":  # up to the numbers that a trial too many took
        assert len(together & {params["std"] for params in alone}) >= 17


def test_the_command_it_reports_trains_the_best_again_to_the_bit(work, flags, capsys, monkeypatch):
    read = data_loader.read_examples
    monkeypatch.setattr(
        data_loader, "read_examples", lambda *a, **k: read(*a, **k) if k["train"] else pytest.fail("test set")
    )
    sweep, study = work("--trials=4", "--sampler=tpe", "--search", "std=log:0.02:0.3", "loc_hidden=int:8:32",
                        "optimizer=choice:adam,sgd")  # fmt: skip
    report(sweep, study)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "python main.py" in line)
    assert run_main(shlex.split(line)[2:]) == 0
    name = re.search(r"--run_name=(\S+)", line).group(1)
    again = load_checkpoint(Path(sweep.base.ckpt_dir) / name / "last.pt")
    best = min(trial.value for trial in finished(study))
    assert 100 - again["best_valid_acc"] == best
    trial = next(trial for trial in finished(study) if f"| {slot_of(trial)} | {best:.3f} |" in printed)
    tried = load_checkpoint(sweep.trial_config(slot_of(trial), {}).run_dir / "last.pt")
    assert {name: tried["config"][name] for name in trial.params} == trial.params
    assert_same(again["model_state"], tried["model_state"])
    assert f"Best validation error {best:.3f} %" in printed
    rows = [line for line in (sweep.folder / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4 and f"{best:.3f}" in rows[2]
    record = json.loads((sweep.folder / "results.json").read_text())
    assert [trial["valid_error"] for trial in record["trials"]] == sorted(trial.value for trial in finished(study))
    for name in ("importance", "parallel_coordinate", "history"):
        assert (sweep.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_seeds_train_what_main_trains_with_each(work, flags, capsys):
    sweep, study = work("--seeds=3", "--random_seed=5")
    report(sweep, study)
    printed = capsys.readouterr().out
    errors = []
    for seed in (5, 6, 7):
        run_main([*flags, "--epochs=2", f"--random_seed={seed}", f"--run_name=seed_{seed}"])
        errors.append(100 - load_checkpoint(Path(sweep.base.ckpt_dir) / f"seed_{seed}" / "last.pt")["best_valid_acc"])
    assert [trial.value for trial in study.trials] == errors
    assert f"over 3 seeds: {statistics.mean(errors):.3f} ± {statistics.stdev(errors):.3f} %" in printed


def test_a_trial_above_the_median_is_pruned_and_one_that_diverges_too(work, flags):
    sweep, study = work("--trials=2", "--search", "init_lr=choice:1e30")
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}
    assert "lower --init_lr=" in study.trials[0].user_attrs["note"]
    report(sweep, study)
    medians = ["--trials=7", "--study=medians", "--search", "init_lr=choice:1e-8,3e-3"]
    sweep = parse([*flags, "--epochs=2", "--workers=0", *medians])
    study = open_study(sweep)
    for init_lr in [3e-3] * 5 + [1e-8, 3e-3]:
        study.enqueue_trial({"init_lr": init_lr})
    sweep_command.main(sweep)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.COMPLETE]
    assert study.trials[5].user_attrs["note"] == "pruned after 1 epochs"


def test_a_study_or_a_folder_of_something_else_is_refused(work, flags):
    sweep, _ = work("--trials=1", *STD)
    for other in (["--search", "std=log:0.02:0.2"], [*STD, "--epochs=3"], [*STD, "--M=2"]):
        with pytest.raises(InputError, match=r"was begun with .*choose another --study="):
            work("--trials=1", *other)
    work("--trials=2", *STD, "--print_freq=3")  # what changes no training may differ
    (sweep.folder / "journal.log").unlink()
    with pytest.raises(InputError, match=r"contradicts the run in .*trial_0"):
        work("--trials=1", "--search", "std=log:0.2:0.3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--search", "st=log:1:2"], "search st=log:1:2: st is no flag of main.py"),
        (["--search", "run_name=choice:a,b"], "run_name is the same in all trials"),
        (["--search", "std=log:0.3:0.1"], "the range is empty"),
        (["--search", "scan_radius=log:0:0.1"], "below what a logarithm takes"),
        (["--search", "std=log:0.1:wide"], "std=wide is not allowed"),
        (["--search", "std=log:-1:1"], "std=-1 is not allowed: it must be a finite number above 0"),
        (["--search", "std=int:1:3"], "std takes any number: uniform or log"),
        (["--search", "hidden_size=uniform:1:3"], "hidden_size takes whole numbers: int or log"),
        (["--search", "lr_patience=int:None:3"], "a range runs between numbers"),
        (["--search", "optimizer=choice:adam,sdg"], "optimizer=sdg is not allowed"),
        (["--search", "optimizer=choice:adam,adam"], "stands there twice"),
        (["--search", "std=0.1"], "write std=uniform:LOW:HIGH"),
        (["--search", "std=log:0.1:0.2", "std=log:0.1:0.3"], "a field stands there twice"),
        ([*STD, "--std=0.07"], "std is searched: leave --std= out"),
        ([*STD, "--run_name=mine"], "a sweep sets this itself"),
        ([*STD, "--seeds=2"], "name either what to search"),
        ([], "name either what to search"),
        ([*STD, "--trials=0"], "trials=0 is not allowed"),
        ([*STD, "--heartbeat=0"], "heartbeat=0.0 is not allowed"),
        ([*STD, "--study=a/b"], "one folder name"),
        (["--config=missing.toml"], "missing.toml cannot be read"),
        ([*STD, "--storage=mysql+nodriver://host/name"], "cannot open --storage="),
        ([*STD, "--storage=/proc/none/journal.log"], "cannot open --storage="),
    ],
)
def test_bad_input_ends_with_one_line(argv, message, capsys, tmp_path):
    assert sweep_command.run(["--task=digits", f"--ckpt_dir={tmp_path}", "--workers=0", *argv]) == 1
    printed = capsys.readouterr().err
    assert message in printed and len(printed.splitlines()) == 1


def test_data_that_is_missing_ends_with_one_line_and_no_trial(flags, tmp_path, capsys):
    argv = [*flags[1:], f"--data_dir={tmp_path}", "--task=folder", "--trials=2", *STD]
    assert sweep_command.run(argv) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len([line for line in printed if "trial/s" not in line and line]) == 1, printed
    assert "all workers have stopped, 0 of 2 trials finished" in printed[-1] and str(tmp_path / "train") in printed[-1]


def test_a_toml_file_stands_for_flags_which_override_it(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text('trials = 7\ntask = "digits"\nuse_gpu = false\n[search]\nstd = "log:0.1:0.2"\nepochs = "int:1:3"\n')
    sweep = parse([f"--config={path}", "--trials=9"])
    assert sweep.ranges == parse(["--search", "std=log:0.1:0.2", "epochs=int:1:3"]).ranges
    assert (sweep.flags.trials, sweep.base.task, sweep.base.use_gpu) == (9, "digits", False)
    path.write_text("trials = ")
    with pytest.raises(InputError, match="cannot be read as a sweep's settings"):
        parse([f"--config={path}"])


def test_loaders_are_kept_for_settings_that_agree_in_all_they_read(flags, monkeypatch):
    class Spy:
        def __getattr__(self, name):
            read.add(name)
            return getattr(config, name)

    read: set[str] = set()
    for more in ([], ["--canvas_size=40", "--num_clutter=2"], ["--image_width=20", "--image_height=20"]):
        config = get_config([*flags, *more])
        data_loader.get_train_valid_loader(Spy(), "cpu")
    assert read <= set(LOADER_FIELDS)


def test_workers_share_the_cores(flags, monkeypatch, tmp_path):
    started = []

    class Process:
        def __init__(self, command, env, **_):
            started.append((command, env["OMP_NUM_THREADS"]))

        send_signal = wait = lambda *_: None

    monkeypatch.setattr(sweep_command.subprocess, "Popen", Process)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    sweep = parse([*flags, "--workers=3", *STD])
    with sweep_command.start_workers(sweep, 3, tmp_path / "log"):
        assert [threads for _, threads in started] == ["2"] * 3
        assert parse(started[0][0][2:]).flags.workers == 0
