"""A sweep finishes exactly the trials it was asked for, whoever dies meanwhile: kills, Ctrl-C, two at once."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState
from test_trainer import metrics_of

import sweep as sweep_command
from main import run as run_main
from runs import load_checkpoint
from sweep_config import parse
from sweep_trials import FINISHED, TrialTrainer, Worker, finished, open_study, slot_of, slots_of

STD = ["--search", "std=log:0.02:0.3"]


def start(*flags: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "sweep.py", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def under_way(study, epochs: int):
    """A running trial that has told of so many epochs and given a sign of life."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return next((trial for trial in running if (trial.last_step or 0) >= epochs and "beat" in trial.user_attrs), None)


def assert_exact(sweep, study):
    """As many slots as asked for, each finished once, none left behind, each run's epochs trained in order."""
    slots = slots_of(study)
    assert len(slots) == len(finished(study)) == sweep.total
    for slot, attempts in slots.items():
        assert [trial.state in FINISHED for trial in attempts] == [False] * (len(attempts) - 1) + [True]
        lines = metrics_of(sweep.trial_config(slot, {}))
        assert [line["epoch"] for line in lines] == list(range(1, attempts[-1].last_step + 1))


def test_many_may_open_a_new_storage_at_once(flags, storage):
    sweep = parse([*flags, f"--storage={storage}", *STD])
    together = threading.Barrier(4)

    def open_together(_) -> int:
        together.wait()
        return open_study(sweep)._study_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(open_together, range(4)))) == 1


@pytest.fixture(params=["journal", "postgresql"])
def storage(request, tmp_path):
    if request.param == "journal":
        yield str(tmp_path / "journal.log")
        return
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("pg_ctl") or "").parent]
    if not (found[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    prefix = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        prefix = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def server(program: str, *arguments: str):
        subprocess.run([*prefix, found[-1] / program, "-D", folder / "data", *arguments], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    try:
        server("initdb", "--auth=trust", "--username=ram", "--no-sync")
        options = f"-F -p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        server("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql+psycopg://ram@127.0.0.1:{port}/postgres"
        server("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_a_worker_killed_in_mid_trial_loses_nothing_and_no_trial_runs_twice(flags, storage):
    argv = [
        *flags,
        "--epochs=10",
        "--trials=4",
        "--workers=2",
        "--heartbeat=1",
        "--prune=False",
        f"--storage={storage}",
        *STD,
    ]
    sweep = parse(argv)
    process = start(*argv)
    study = open_study(sweep)
    victim = wait_for(lambda: under_way(study, epochs=2))
    os.kill(int(victim.user_attrs["beat"][2].split(":")[1]), signal.SIGKILL)
    output = process.communicate(timeout=150)[0]
    assert process.returncode == 0 and "A worker has stopped with code -9" in output, output
    assert_exact(sweep, study)
    slot = slot_of(victim)
    assert [trial.state for trial in slots_of(study)[slot]] == [TrialState.FAIL, TrialState.COMPLETE]
    log = next(sweep.folder.glob("workers_*.log")).read_text()
    assert log.count("Train on") == sweep.total + 1
    assert re.findall(r"Loaded .*?trial_(\d+)/last.pt, after epoch (\d+)", log)[0][0] == str(slot)
    # The trial in two parts is what one run of its settings gives.
    config = sweep.trial_config(slot, slots_of(study)[slot][-1].user_attrs["settings"])
    assert run_main([*flags, "--epochs=10", f"--std={config.std}", "--run_name=straight"]) == 0
    straight = load_checkpoint(Path(sweep.base.ckpt_dir) / "straight" / "last.pt")
    assert slots_of(study)[slot][-1].value == 100 - straight["best_valid_acc"]
    assert load_checkpoint(config.run_dir / "last.pt")["random_states"][0].equal(straight["random_states"][0])


def test_ctrl_c_saves_and_the_same_command_goes_on(flags, capsys):
    argv = [*flags, "--epochs=10", "--trials=2", "--workers=2", "--prune=False", *STD]
    sweep = parse(argv)
    process = start(*argv)
    study = open_study(sweep)
    wait_for(lambda: under_way(study, epochs=2))
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    last = output.splitlines()[-1]
    assert "stopped by SIGINT, 0 of 2 trials finished" in last and "the same command goes on" in last
    assert not study.get_trials(states=(TrialState.RUNNING,))
    stopped = [load_checkpoint(path)["epoch"] for path in sweep.folder.glob("*/last.pt")]
    assert max(stopped) >= 2
    assert sweep_command.run([*argv, "--workers=0"]) == 0
    assert_exact(sweep, study)
    assert max(len(attempts) for attempts in slots_of(study).values()) == 2
    before = len(study.trials)
    capsys.readouterr()
    assert sweep_command.run(argv) == 0  # it only reports
    assert "2 trials, 0 of them pruned" in capsys.readouterr().out and len(study.trials) == before


class MortalWorker(Worker):
    """Trains nothing, and now and then falls silent, before or after it gave signs of life.

    Its fate hangs on the attempt's number, not on the worker: whoever is quick, 2, 6, 9, 16, 19 and 20 are deadly.
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
    sweep = parse([*flags, "--trials=25", "--heartbeat=1", *STD])
    trained.clear()
    deaths: list[int] = []

    def replace_the_fallen(thread: int):
        while True:
            try:
                return MortalWorker(sweep, open_study(sweep)).work()
            except SystemExit:
                deaths.append(thread)

    threads = [threading.Thread(target=replace_the_fallen, args=(thread,)) for thread in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = open_study(sweep)
    assert len(deaths) > 2
    assert len(finished(study)) == len(slots_of(study)) == 25
    assert sorted(trained) == sorted(slots_of(study))  # each once


def test_of_two_that_begin_at_once_one_too_many_steps_back(flags):
    sweep = parse([*flags, "--trials=1", *STD])
    study = open_study(sweep)
    worker = Worker(sweep, study)
    first, second = study.ask(), study.ask()
    assert not worker.is_surplus(first) and worker.is_surplus(second)
    for trial in (first, second):  # the second has no mark: whoever began it died before it looked
        study.tell(trial, state=TrialState.FAIL)
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"slot": first.number}))
    study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"slot": first.number}))
    assert worker.take().number == 2  # two queued the slot again: one attempt is made
    assert worker.take() is None and study.trials[3].user_attrs["surplus"]
    assert worker.take() is None and len(study.trials) == 4


def test_who_was_taken_to_be_dead_and_is_not_leaves_its_trial_to_the_next(flags, monkeypatch, capsys):
    sweep = parse([*flags, "--epochs=3", "--trials=1", *STD])
    study, asked = open_study(sweep), TrialTrainer.finished

    def give_up_and_ask(trainer):
        if trainer.epoch == 2 and len(study.trials) == 1:
            open_study(sweep).tell(0, state=TrialState.FAIL)
        return asked(trainer)

    monkeypatch.setattr(TrialTrainer, "finished", give_up_and_ask)
    Worker(sweep, study).work()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[1].intermediate_values.keys() == {1, 2, 3}
    assert "trial_0/last.pt, after epoch 2" in capsys.readouterr().out
    assert_exact(sweep, study)
