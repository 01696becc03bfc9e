"""A search draws from the ranges it is given, trains runs like any other, and reports what came out."""

import contextlib
import json
import os
import re
import shlex
import statistics
import threading
from pathlib import Path

import pytest
from helpers import CPU, ROOT, assert_same
from optuna.trial import TrialState

import data_loader
import search.__main__ as search_command
import viz.reports
from config import get_config
from main import run as run_main
from search.options import flags_of, parse
from search.report import record, report
from search.storage import finished, open_study, slot_of
from search.worker import Worker
from training.checkpoint import load_checkpoint
from training.cli import InputError

STD = ["--search", "std=log:0.02:0.3"]


@pytest.fixture
def flags(flags, monkeypatch) -> list[str]:
    """Flags of a training of half a second, which draws no curves."""
    monkeypatch.setattr(viz.reports, "save_curves", lambda *_: None)
    return [*flags, "--epochs=2", "--valid_size=0.7", "--plot_freq=9"]


@pytest.fixture
def work(flags):
    """Runs a search of short trainings in this process."""

    def call(*more: str):
        search = parse([*flags, "--workers=0", *more])
        search_command.main(search)
        return search, open_study(search)

    return call


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_lie_in_their_ranges_and_random_search_tries_the_same_whoever_draws(flags, sampler, monkeypatch):
    stops = []

    def suggest(worker, trial, slot):
        std = {part.field: part.suggest(trial) for part in worker.search.ranges}["std"]
        if worker.search.study == "stopped" and slot % 5 == 3 and slot not in stops:
            stops.append(slot)
            raise KeyboardInterrupt
        return std

    monkeypatch.setattr(Worker, "train", suggest)
    ranges = ["--search", "std=log:0.02:0.3", "loc_hidden=int:3:5", "init_lr=uniform:0.1:0.2",
              "core=choice:relu,lstm", "glimpse_hidden=log:1:1000", "lr_patience=choice:None,3"]  # fmt: skip
    drawn = {}
    for name, workers in (("alone", 1), ("together", 3), ("again", 1), ("stopped", 0)):
        seed = ["--random_seed=2"] * (name == "again")
        search = parse([*flags, f"--study={name}", f"--sampler={sampler}", "--trials=20", *ranges, *seed])
        threads = [threading.Thread(target=Worker(search, open_study(search)).work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while name == "stopped" and len(finished(open_study(search))) < 20:
            with contextlib.suppress(KeyboardInterrupt):
                Worker(search, open_study(search)).work()
        trials = [trial for trial in open_study(search).trials if trial.state == TrialState.COMPLETE]
        drawn[name] = [trial.params for trial in trials]
    for params in (params for group in drawn.values() for params in group):
        assert 0.02 <= params["std"] <= 0.3 and params["loc_hidden"] in (3, 4, 5) and 0.1 <= params["init_lr"] <= 0.2
        assert params["core"] in ("relu", "lstm") and params["lr_patience"] in (None, 3)
    alone = drawn["alone"]
    assert len({params["std"] for params in alone}) == 20  # no two alike
    assert statistics.median(params["glimpse_hidden"] for params in alone) < 150  # a uniform draw would have 500
    assert alone[0] != drawn["again"][0]
    if sampler == "random":
        assert len(stops) >= 4
        for name in ("together", "stopped"):
            assert {params["std"] for params in drawn[name]} == {params["std"] for params in alone}


def test_the_command_it_reports_trains_the_best_again_to_the_bit(work, flags, capsys, monkeypatch):
    read = data_loader.read_examples
    monkeypatch.setattr(
        data_loader, "read_examples", lambda *a, **k: read(*a, **k) if k["train"] else pytest.fail("test set")
    )
    search, study = work("--trials=4", "--sampler=tpe", "--search", "std=log:0.02:0.3", "loc_hidden=int:8:32",
                         "optimizer=choice:adam,sgd")  # fmt: skip
    report(search, study)
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "python main.py" in line)
    assert run_main(shlex.split(line)[2:]) == 0
    name = re.search(r"--run_name=(\S+)", line).group(1)
    again = load_checkpoint(Path(search.base.call.ckpt_dir) / name / "last.pt")
    best = min(trial.value for trial in finished(study))
    assert 100 - again["best_valid_acc"] == best
    trial = next(trial for trial in finished(study) if f"| {slot_of(trial)} | {best:.3f} |" in printed)
    tried = load_checkpoint(search.trial_config(slot_of(trial)).run_dir / "last.pt")
    assert {name: tried["config"][name] for name in trial.params} == trial.params
    assert_same(again["model_state"], tried["model_state"])
    assert f"Best validation error {best:.3f} %" in printed
    rows = [line for line in (search.folder / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4 and f"{best:.3f}" in rows[2]
    results = json.loads((search.folder / "results.json").read_text())
    assert [trial["valid_error"] for trial in results["trials"]] == sorted(trial.value for trial in finished(study))
    assert results["reported_with"]["command"] == shlex.join(["python", "-m", "search", *search.argv])
    for name in ("importance", "parallel_coordinate", "history"):
        assert (search.folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_leaves_out_the_password_of_the_storage(flags):
    search = parse([*flags, "--storage=postgresql+psycopg://user:secret@host/name", *STD])
    recorded = json.dumps(record(search, []))
    assert "secret" not in recorded and "user:***@host/name" in recorded


def test_seeds_train_what_main_trains_with_each(work, flags, capsys):
    search, study = work("--seeds=3", "--random_seed=5")
    report(search, study)
    printed = capsys.readouterr().out
    errors = []
    for seed in (5, 6, 7):
        run_main([*flags, f"--random_seed={seed}", f"--run_name=seed_{seed}"])
        last = load_checkpoint(Path(search.base.call.ckpt_dir) / f"seed_{seed}" / "last.pt")
        errors.append(100 - last["best_valid_acc"])
    assert [trial.value for trial in study.trials] == errors
    assert f"over 3 seeds: {statistics.mean(errors):.3f} ± {statistics.stdev(errors):.3f} %" in printed


def test_a_trial_above_the_median_is_pruned_and_one_that_diverges_too(work, flags):
    search, study = work("--trials=2", "--search", "init_lr=choice:1e30")
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}
    assert re.search(r"the .* loss is \S+ at step \d+ of epoch 1$", study.trials[0].user_attrs["note"])
    report(search, study)
    medians = ["--trials=7", "--study=medians", "--search", "init_lr=choice:1e-8,3e-3"]
    search = parse([*flags, "--workers=0", *medians])
    study = open_study(search)
    for init_lr in [3e-3] * 5 + [1e-8, 3e-3]:
        study.enqueue_trial({"init_lr": init_lr})
    search_command.main(search)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE] * 5 + [TrialState.PRUNED, TrialState.COMPLETE]
    assert study.trials[5].user_attrs["note"] == "pruned after 1 epochs"


def test_a_study_or_a_folder_of_something_else_is_rejected(work, flags):
    search, _ = work("--trials=1", *STD)
    for other in (["--search", "std=log:0.02:0.2"], [*STD, "--epochs=3"], [*STD, "--M=2"]):
        with pytest.raises(InputError, match=r"was begun with .*choose another --study="):
            work("--trials=1", *other)
    work("--trials=2", *STD, "--print_freq=3")  # settings that change no error may differ
    study = open_study(search)
    about = study.user_attrs["about"]
    study.set_user_attr("about", {name: about[name] for name in about if name != "reinforce_core"})  # an older one's
    work("--trials=2", *STD)
    with pytest.raises(InputError, match="was begun with reinforce_core=False, not True"):
        work("--trials=2", *STD, "--reinforce_core=True")
    (search.folder / "journal.log").unlink()
    with pytest.raises(InputError, match=r"contradicts .*trial_0"):
        work("--trials=1", "--search", "std=log:0.2:0.3")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--search", "st=log:1:2"], "search st=log:1:2: st is no flag of main.py"),
        (["--search", "run_name=choice:a,b"], "run_name is the same in all trials"),
        (["--search", "canvas_size=int:40:60"], "canvas_size is the same in all trials"),
        (["--search", "std=log:0.3:0.1"], "the range is empty"),
        (["--search", "scan_radius=log:0:0.1"], "has no logarithm"),
        (["--search", "std=log:0.1:wide"], "std=wide is not allowed"),
        (["--search", "std=log:-1:1"], "std=-1.0 is not allowed: it must be a finite number above 0"),
        (["--search", "std=int:1:3"], "std takes any number: uniform or log"),
        (["--search", "hidden_size=uniform:1:3"], "hidden_size takes whole numbers: int or log"),
        (["--search", "lr_patience=int:None:3"], "a range runs between numbers"),
        (["--search", "optimizer=choice:adam,sdg"], "optimizer=sdg is not allowed"),
        (["--search", "optimizer=choice:adam,adam"], "name each choice once"),
        (["--search", "std=0.1"], "write std=uniform:LOW:HIGH"),
        (["--search", "std=log:0.1:0.2", "std=log:0.1:0.3"], "name each field once"),
        ([*STD, "--std=0.07"], "std is searched: leave --std= out"),
        ([*STD, "--run_name=mine"], "run_name=mine: a search sets this itself"),
        ([*STD, "--valid_size=0"], "valid_size=0.0: trials are compared by their validation"),
        ([*STD, "--seeds=2"], "name either what to search"),
        ([], "name either what to search"),
        ([*STD, "--trials=0"], "trials=0 is not allowed: it must be at least 1"),
        ([*STD, "--workers=-1"], "workers=-1 is not allowed"),
        ([*STD, "--heartbeat=0"], "heartbeat=0.0 is not allowed"),
        ([*STD, "--study=a/b"], "one folder name"),
        (["--config=missing.toml"], "missing.toml cannot be read"),
        ([*STD, "--storage=mysql+nodriver://host/name"], "cannot open --storage="),
        ([*STD, "--storage=/proc/none/journal.log"], "cannot open --storage="),
        ([*STD, "--ckpt_dir=/proc/none"], "cannot write to /proc/none/digits_ram_6_8x8_1_sweep"),
        ([*STD, *STD], "name each field once"),
    ],
)
def test_bad_input_ends_with_one_line(argv, message, capsys, tmp_path):
    assert search_command.run(["--task=digits", f"--ckpt_dir={tmp_path}", "--workers=0", *argv]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("search: ") and message in printed and len(printed.splitlines()) == 1


def test_data_that_is_missing_ends_with_one_line_and_no_trial(flags, tmp_path, capsys):
    argv = [*flags[1:], f"--data_dir={tmp_path}", "--task=folder", "--trials=2", *STD]
    assert search_command.run(argv) == 1
    printed = capsys.readouterr().err.splitlines()
    assert len([line for line in printed if "trial/s" not in line and line]) == 1, printed
    assert "all workers have stopped, 0 of 2 trials finished" in printed[-1] and str(tmp_path / "train") in printed[-1]


def test_a_toml_file_stands_for_flags_which_override_it(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text('trials = 7\ntask = "digits"\nuse_gpu = false\n[search]\nstd = "log:0.1:0.2"\nepochs = "int:1:3"\n')
    search = parse([f"--config={path}", "--trials=9"])
    assert search.ranges == parse(["--search", "std=log:0.1:0.2", "epochs=int:1:3"]).ranges
    assert (search.flags.trials, search.base.data.task, search.base.machine.use_gpu) == (9, "digits", False)
    [alone] = parse([f"--config={path}", "--search", "std=log:0.1:0.3"]).ranges
    assert alone.high == 0.3
    for text, message in (("trials = ", "cannot be read as TOML"), ("search = 3", "write search as a table")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            parse([f"--config={path}"])


def test_search_may_be_repeated():
    both = parse(["--search", "std=log:0.1:0.2", "--search=epochs=int:1:3"])
    assert both.ranges == parse(["--search", "std=log:0.1:0.2", "epochs=int:1:3"]).ranges


def test_trials_share_what_a_recipe_sets_and_may_search_the_rest(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('task = "digits"\nepochs = 3\ninit_lr = 0.5\n')
    search = parse([f"--recipe={recipe}", "--std=0.2", "--search", "init_lr=choice:2e-3,3e-3"])
    assert search.study == "mine_sweep" and search.base.training.epochs == 3
    trial = search.trial_config(1, init_lr=2e-3)  # which is what the task has without the recipe
    assert get_config(flags_of(trial)) == trial


def test_trials_on_the_same_images_share_their_loaders(flags):
    search = parse([*flags, *STD])
    search.folder.mkdir(parents=True)
    worker = Worker(search, study=None)
    loaders = worker.load(search.trial_config(0, std=0.2, hidden_size=3), CPU)
    assert worker.load(search.trial_config(1, std=0.3), CPU) is loaders
    for other in ({"batch_size": 3}, {"random_seed": 2}):
        assert worker.load(search.trial_config(2, **other), CPU) is not loaders


def test_workers_divide_the_cores_and_find_the_package_from_any_folder(flags, monkeypatch, tmp_path):
    started = []

    class Process:
        def __init__(self, command, env, cwd=None, **_):
            started.append((command, env))
            assert cwd is None  # relative folders mean the caller's

        send_signal = wait = lambda *_: None

    monkeypatch.setattr(search_command.subprocess, "Popen", Process)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("PYTHONPATH", "mine")
    search = parse([*flags, "--workers=3", *STD])
    with search_command.start_workers(search, 3, tmp_path / "log"):
        assert [env["OMP_NUM_THREADS"] for _, env in started] == ["2"] * 3
        command, env = started[0]
        assert command[1:3] == ["-m", "search"] and parse(command[3:]).flags.workers == 0
        assert env["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "mine"]
