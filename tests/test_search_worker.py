"""A search finishes exactly the trials it was asked for, whoever dies meanwhile: kills, Ctrl-C, two at once."""

import functools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from helpers import ROOT, metrics_of
from optuna.trial import TrialState

import search.__main__ as search_command
from main import run as run_main
from search.options import parse
from search.storage import FINISHED, finished, open_study, slot_of, slots_of
from search.worker import Worker
from trainer import Trainer
from training.checkpoint import load_checkpoint

STD = ["--search", "std=log:0.02:0.3"]
SET_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_{}); os.execv(sys.executable, sys.argv[1:])"
)


def start(*flags: str, ignore_sigint: bool = False, **options) -> subprocess.Popen:
    """The command, as a terminal starts it, or a script in the background: then SIGINT is ignored."""
    set_sigint = SET_SIGINT.format("IGN" if ignore_sigint else "DFL")
    command = [sys.executable, "-c", set_sigint, sys.executable, "-m", "search", *flags]
    options = {"cwd": ROOT, **options}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def wait_for(condition, seconds: float = 120):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def under_way(study, epochs: int):
    """A running trial that has reported so many epochs and given a sign of life."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next((trial for trial in running if (trial.last_step or 0) >= epochs and "beat" in trial.user_attrs), None)


def assert_exact(search, study):
    """As many slots as asked for, each finished once, none left behind, each run's epochs trained in order."""
    slots = slots_of(study)
    assert len(slots) == len(finished(study)) == search.total
    for slot, attempts in slots.items():
        assert [trial.state in FINISHED for trial in attempts] == [False] * (len(attempts) - 1) + [True]
        lines = metrics_of(search.trial_config(slot))
        assert [line["epoch"] for line in lines] == list(range(1, attempts[-1].last_step + 1))


@pytest.mark.slow
def test_a_worker_killed_in_mid_trial_loses_nothing_and_no_trial_runs_twice(flags, storage):
    own = ["--trials=4", "--workers=2", "--heartbeat=1", "--prune=False", f"--storage={storage}"]
    argv = [*flags, "--epochs=10", *own, *STD]
    search = parse(argv)
    process = start(*argv)
    study = open_study(search)
    victim = wait_for(lambda: under_way(study, epochs=2))
    os.kill(int(victim.user_attrs["beat"][2].split(":")[1]), signal.SIGKILL)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0 and "A worker has stopped with code -9" in output, output
    assert_exact(search, study)
    slot = slot_of(victim)
    assert [trial.state for trial in slots_of(study)[slot]] == [TrialState.FAIL, TrialState.COMPLETE]
    log = next(search.folder.glob("workers_*.log")).read_text()
    assert log.count("Train on") == search.total + 1
    assert re.findall(r"Loaded .*?trial_(\d+)/last.pt, after epoch (\d+)", log)[0][0] == str(slot)
    # The trial in two parts is what one run of its settings gives.
    config = search.trial_config(slot, **slots_of(study)[slot][-1].user_attrs["settings"])
    assert run_main([*flags, "--epochs=10", f"--std={config.model.std}", "--run_name=straight"]) == 0
    straight = load_checkpoint(Path(search.base.call.ckpt_dir) / "straight" / "last.pt")
    assert slots_of(study)[slot][-1].value == 100 - straight["best_valid_acc"]
    assert load_checkpoint(config.run_dir / "last.pt")["random_states"][0].equal(straight["random_states"][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "in_background"), [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["Ctrl-C", "SIGTERM, background"]
)
def test_a_signal_stops_all_workers_saved_and_the_same_command_continues(
    flags, capsys, tmp_path, number, in_background
):
    own = ["--epochs=10", "--trials=2", "--workers=2", "--prune=False", *STD]
    argv = [*flags, *own]
    search = parse(argv)
    # Started in another folder, of which it is given relative paths.
    folders = ["--ckpt_dir=ckpt_dir", "--logs_dir=logs_dir", "--plot_dir=plot_dir"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = start(*flags, *folders, *own, ignore_sigint=in_background, cwd=tmp_path, env=environment)
    study = open_study(search)
    wait_for(lambda: under_way(study, epochs=2))
    if in_background:  # a script's Ctrl-C is not meant for it
        process.send_signal(signal.SIGINT)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number
    last = output.splitlines()[-1]
    assert last.startswith(f"search: stopped by {number.name}, 0 of 2 trials finished")
    assert last.endswith("; the same command continues")
    assert not study.get_trials(states=(TrialState.RUNNING,))
    stopped = [load_checkpoint(path)["epoch"] for path in search.folder.glob("*/last.pt")]
    assert max(stopped) >= 2
    assert search_command.run([*argv, "--workers=0"]) == 0
    assert_exact(search, study)
    assert max(len(attempts) for attempts in slots_of(study).values()) == 2
    before = len(study.trials)
    capsys.readouterr()
    assert search_command.run(argv) == 0  # it only reports
    assert "2 trials, 0 of them pruned" in capsys.readouterr().out and len(study.trials) == before


def test_a_second_signal_ends_at_once_and_no_worker_outlives_the_command(flags, tmp_path, monkeypatch, capsys):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('later', flush=True)); "
    stubborn += "print('ready', flush=True); [time.sleep(1) for _ in range(600)]"
    start_process, workers = subprocess.Popen, []

    def start_stubborn(command, **options):
        workers.append(start_process([sys.executable, "-c", stubborn], **options))
        return workers[-1]

    def printed(text: str) -> bool:
        return any(text in path.read_text() for path in tmp_path.rglob("workers_*.log"))

    def send_two():
        for text in ("ready", "later"):
            wait_for(functools.partial(printed, text))
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(search_command.subprocess, "Popen", start_stubborn)
    sender = threading.Thread(target=send_two)
    sender.start()
    assert search_command.run([*flags, *STD]) == 128 + signal.SIGTERM
    sender.join()
    assert "stopped by SIGTERM, 0 of 40 trials finished" in capsys.readouterr().err
    assert [worker.poll() for worker in workers] == [-signal.SIGKILL]


counted: list[int] = []


def count_step(trainer, train_step, *arguments):
    counted.append(trainer.progress.step)
    return train_step(trainer, *arguments)


def test_a_signal_in_the_last_validation_of_a_trial_stops_the_worker_and_costs_nothing(flags, monkeypatch, capsys):
    argv = [*flags, "--epochs=1", "--trials=2", "--workers=0", *STD]
    evaluate = Trainer.evaluate

    def receive_and_evaluate(trainer, loader, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(trainer, loader, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "evaluate", receive_and_evaluate)
        assert search_command.run(argv) == 128 + signal.SIGTERM
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("search: stopped by SIGTERM, saved before the validation of epoch 1; the same")
    search = parse(argv)
    steps = load_checkpoint(search.folder / "trial_0" / "last.pt")["step"]
    monkeypatch.setattr(Trainer, "train_step", functools.partialmethod(count_step, Trainer.train_step))
    counted.clear()
    assert search_command.run(argv) == 0
    assert_exact(search, open_study(search))
    assert len(counted) == steps > 0  # those of the second trial: of the first, nothing was left to train


class MortalWorker(Worker):
    """Trains nothing, and now and then falls silent, before or after it gave signs of life.

    Its fate depends on the attempt's number, not on the worker: 2, 6, 9, 16, 19 and 20 are deadly for all.
    """

    def run(self, trial):
        fate = random.Random(trial.number + 12)
        if fate.random() < 0.2:
            if fate.random() < 0.8:
                trial.set_user_attr("beat", [fate.randrange(9), 0.05, "dead"])
            raise SystemExit
        super().run(trial)

    def train(self, trial, slot):
        time.sleep(random.uniform(0, 0.05))
        trained.append(slot)
        return 50.0


trained: list[int] = []


def test_many_workers_that_die_at_random_finish_exactly_the_trials_asked_for(flags):
    """Six threads, each with a storage of its own as processes have; one that falls silent is replaced."""
    search = parse([*flags, "--trials=25", "--heartbeat=1", *STD])
    trained.clear()
    deaths: list[int] = []

    def replace_the_fallen(thread: int):
        while True:
            try:
                return MortalWorker(search, open_study(search)).work()
            except SystemExit:
                deaths.append(thread)

    threads = [threading.Thread(target=replace_the_fallen, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = open_study(search)
    assert len(deaths) > 2
    assert len(finished(study)) == len(slots_of(study)) == 25
    assert sorted(trained) == sorted(slots_of(study))  # each once


def test_of_two_that_begin_at_once_one_too_many_steps_back(flags):
    search = parse([*flags, "--trials=1", *STD])
    study = open_study(search)
    worker = Worker(search, study)
    first, second = study.ask(), study.ask()
    assert not worker.is_surplus(first) and worker.is_surplus(second)
    for trial in (first, second):  # the second has no mark: whoever began it died before it looked
        study.tell(trial, state=TrialState.FAIL)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"slot": first.number}))
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"slot": first.number}))
    assert worker.take().number == 2  # two queued the slot again: one attempt is made
    assert worker.take() is None and study.trials[3].user_attrs["surplus"]
    assert worker.take() is None and len(study.trials) == 4


def test_a_worker_that_seemed_dead_and_is_not_leaves_its_trial_to_the_next(flags, monkeypatch, capsys):
    search = parse([*flags, "--epochs=3", "--trials=1", *STD])
    study, save = open_study(search), Trainer.save_checkpoint

    def save_and_give_up(trainer, is_best=False):
        save(trainer, is_best)
        if trainer.progress.epoch == 2 and len(study.trials) == 1:
            open_study(search).tell(0, state=TrialState.FAIL)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_and_give_up)
    Worker(search, study).work()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].intermediate_values.keys() == {1, 2, 3}
    assert "trial_0/last.pt, after epoch 2" in capsys.readouterr().out
    assert_exact(search, study)


@pytest.mark.parametrize("death", [1, 2, 3])
def test_a_worker_that_dies_after_it_saved_an_epoch_leaves_the_report_to_the_next(flags, death, monkeypatch):
    search = parse([*flags, "--epochs=3", "--trials=1", *STD])
    study, report = open_study(search), optuna.Trial.report

    def report_or_die(trial, value, step):
        if trial.number == 0 and step == death:
            raise SystemExit
        report(trial, value, step)

    monkeypatch.setattr(optuna.Trial, "report", report_or_die)
    with pytest.raises(SystemExit):
        Worker(search, study).work()
    assert load_checkpoint(search.trial_config(0).run_dir / "last.pt")["epoch"] == death
    Worker(search, open_study(search)).work()
    errors = [100 - line["valid"]["acc"] for line in metrics_of(search.trial_config(0))]
    best = {epoch: min(errors[:epoch]) for epoch in (1, 2, 3)}
    assert study.trials[1].intermediate_values == best and study.trials[1].value == best[3]
    assert_exact(search, study)


def test_a_trial_that_was_to_be_pruned_as_its_worker_died_is_pruned_before_it_trains_on(flags, monkeypatch):
    search = parse([*flags, "--epochs=3", "--trials=1", *STD])
    study, prune = open_study(search), optuna.Trial.should_prune

    def prune_or_die(trial):
        if trial.number == 0:
            raise SystemExit
        return prune(trial) or True

    monkeypatch.setattr(optuna.Trial, "should_prune", prune_or_die)
    with pytest.raises(SystemExit):
        Worker(search, study).work()
    Worker(search, open_study(search)).work()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.PRUNED]
    assert study.trials[1].user_attrs["note"] == "pruned after 1 epochs"
    assert_exact(search, study)


def test_a_signal_between_two_trainings_gives_the_trial_back(flags, monkeypatch, capsys):
    search = parse([*flags, "--trials=1", "--workers=0", *STD])
    monkeypatch.setattr(Worker, "load", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert search_command.run(search.argv) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM, its trial is given back; the same command continues" in capsys.readouterr().err
    assert [trial.state for trial in open_study(search).trials] == [TrialState.FAIL]
