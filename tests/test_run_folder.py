"""A run's folders: who may write to them, what --overwrite deletes, and one command that begins or continues."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from helpers import contents, metrics_of

import main
import training.run_folder
from config import config_of, get_config, make_config
from training.checkpoint import load_checkpoint, write_whole
from training.cli import InputError
from training.run_folder import locked


def test_one_command_begins_and_continues(run):
    command = ["--resume=auto", "--epochs=3"]
    assert load_checkpoint(run(*command, "--stop_after_epoch=1").checkpoint_path)["epoch"] == 1
    assert load_checkpoint(run(*command, "--stop_after_epoch=2").checkpoint_path)["epoch"] == 2
    assert len(metrics_of(run(*command))) == 3
    assert len(metrics_of(run(*command))) == 3  # nothing is left to do


def test_a_kill_before_the_first_last_pt_costs_nothing(run):
    """It leaves best.pt alone, which holds the same."""
    config = run("--epochs=1")
    (config.run_dir / "last.pt").unlink()
    resumed = run("--resume=auto", "--epochs=2")
    assert [line["epoch"] for line in metrics_of(resumed)] == [1, 2]


def test_a_damaged_last_pt_beside_a_whole_best_pt_names_the_command_that_continues(run, flags, capsys):
    config = run("--epochs=1")
    last = config.run_dir / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert main.run([*flags, "--resume=auto", "--epochs=2"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"rm {last}, and --resume=True continues from best.pt, of epoch 1" in line
    last.unlink()
    assert main.run([*flags, "--resume=True", "--epochs=2"]) == 0
    (config.run_dir / "best.pt").write_bytes(b"")
    last.write_bytes(b"")
    assert main.run([*flags, "--resume=True"]) == 1
    assert "rm " not in capsys.readouterr().err


def test_a_run_without_params_json_has_the_settings_of_its_checkpoint(run, flags, capsys):
    more = [
        "--std=0.3",
        "--reward=correct",
        "--optimizer=adam",
        "--patch_size=10",
        "--random_seed=7",
        "--run_name=mine",
    ]
    config = run("--epochs=1", *more)
    run("--run_name=mine", "--is_train=False")
    tested = capsys.readouterr().out.splitlines()[-1]
    config.params_path.unlink()
    named = [*flags, "--run_name=mine"]
    assert main.run([*named, "--is_train=False"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == tested
    assert main.run([*named, "--resume=True", "--std=0.1"]) == 1
    assert "std=0.1 contradicts" in capsys.readouterr().err
    assert main.run([*named, "--resume=True", "--epochs=2"]) == 0
    assert config_of(load_checkpoint(config.run_dir / "last.pt")["config"], "last.pt").training.random_seed == 7
    assert get_config([*named, "--is_train=False"]).training == config.replace(epochs=2, is_train=False).training


def test_flags_are_checked_against_the_settings_of_the_run_not_of_its_task(run, flags):
    run("--epochs=1", "--canvas_size=32", "--num_clutter=2")
    assert get_config([*flags, "--is_train=False", "--num_clutter=2"]).data.canvas_size == 32
    assert get_config([*flags, "--resume", "--num_clutter", "2", "--epochs", "2"]).training.epochs == 2
    best = f"--checkpoint={get_config(flags).run_dir / 'best.pt'}"
    assert main.configure(["--is_train=False", best, "--num_clutter=2"]).data.canvas_size == 32


def test_another_task_than_the_runs_contradicts_it_whatever_else_it_would_not_go_with(run, flags, capsys):
    config = run("--epochs=1")
    for more, way_out in (["--is_train=False"], "leave the flag out"), (["--resume"], "another run with --run_name="):
        assert main.run([*flags, f"--run_name={config.name}", "--task=cluttered60", *more]) == 1
        printed = capsys.readouterr().err
        assert f"task=cluttered60 contradicts {config.run_dir}" in printed and "which has task=digits" in printed
        assert way_out in printed


def test_fewer_epochs_than_are_finished_are_rejected_and_not_recorded(run, flags, capsys):
    config = run("--epochs=2")
    before = contents(config.run_dir)
    assert main.run([*flags, "--resume", "--epochs=1"]) == 1
    assert "epochs=1 are fewer than the 2 that are finished" in capsys.readouterr().err
    assert contents(config.run_dir) == before


def test_overwriting_deletes_nothing_of_the_users(run, tmp_path):
    config = run("--epochs=1", "--use_tensorboard")  # which claims its folders
    mine = [config.run_plots / "thesis.txt", config.run_logs / "notes.md"]
    before = [tmp_path / "before" / config.name / name for name in ("thesis.txt", "picture.png")]
    for path in [*mine, *before]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (config.run_plots / "glimpses_9.npz").write_text("")
    run("--epochs=1", "--use_tensorboard", "--overwrite")
    assert all(path.read_text() == "mine" for path in mine)
    assert not (config.run_plots / "glimpses_9.npz").exists()
    run("--epochs=1", "--overwrite", f"--plot_dir={tmp_path / 'before'}")  # never a run's until now
    assert all(path.read_text() == "mine" for path in before)


def test_a_run_whose_predecessor_of_the_same_name_was_deleted_does_not_mix_with_it(run, flags, capsys):
    config = run("--epochs=2")
    run("--is_train=False")
    for name in ("best.pt", "last.pt"):
        (config.run_dir / name).unlink()
    before = contents(config.run_dir)
    assert main.run([*flags, "--epochs=1", "--resume=auto"]) == 1
    assert "holds test.json of a run: --run_name=NAME trains another, --overwrite=True" in capsys.readouterr().err
    assert contents(config.run_dir) == before
    shutil.rmtree(config.run_dir)
    (config.run_plots / "mine.gif").write_text("mine")
    run("--epochs=1")
    left = {path.name for path in config.run_plots.iterdir()}
    assert "glimpses_1.npz" in left and "mine.gif" in left and "glimpses_2.npz" not in left


def test_damaged_metrics_stop_a_resume_before_it_trains(run, flags, capsys):
    config = run("--epochs=1")
    with open(config.run_dir / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "tra')
    capsys.readouterr()
    assert main.run([*flags, "--resume", "--epochs=2"]) == 1
    printed = capsys.readouterr()
    assert "metrics.jsonl is damaged" in printed.err and "Train on" not in printed.out


def test_what_a_killed_process_was_writing_is_removed_by_the_resume(run):
    config = run("--epochs=1")
    stale = config.run_dir / "last.pt.0123abcd.tmp"
    stale.write_text("half a check")
    run("--resume", "--epochs=2")
    assert not stale.exists()


def test_names_with_brackets_stay_as_they_are_in_test_json(run, plain):
    (plain / "train" / "a").rename(plain / "train" / "[a   b]")
    (plain / "test" / "a").rename(plain / "test" / "[a   b]")
    more = ["--task=folder", f"--data_dir={plain}", "--patch_size=4", "--num_workers=0", "--batch_size=8"]
    run(*more, "--epochs=1")
    config = run(*more, "--is_train=False")
    text = (config.run_dir / "test.json").read_text()
    assert json.loads(text)["tests"]["M=1"]["classes"] == ["[a   b]", "b"]
    assert re.search(r"\[\d+, \d+\]", text)  # a row of the confusion


def write_forty_times(path: Path):
    for _ in range(40):
        write_whole(path, b"x" * 100_000)


def test_two_processes_that_write_one_file_leave_it_whole(tmp_path):
    children = [multiprocessing.Process(target=write_forty_times, args=(tmp_path / "a.gif",)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
    assert (tmp_path / "a.gif").stat().st_size == 100_000


def test_flags_that_may_be_true_need_no_value():
    call = get_config(["--resume", "--overwrite", "--epochs", "3", "--use_tensorboard"])
    assert (call.call.resume, call.call.overwrite, call.machine.use_tensorboard) == (True, True, True)
    for words in (["--resume", "False"], ["--resume=False"], []):
        assert get_config(words).call.resume is False
    with pytest.raises(SystemExit):
        get_config(["--epochs"])


def test_the_tilde_is_home_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ckpt_dir", "logs_dir", "plot_dir", "data_dir", "checkpoint"):
        assert make_config(**{name: "~/x", "is_train": False}).flat()[name] == str(tmp_path / "x")
    (tmp_path / "mine.toml").write_text("epochs = 7\n")
    assert get_config(["--recipe=~/mine.toml"]).training.epochs == 7


@pytest.mark.parametrize("flag", ["ckpt_dir", "plot_dir", "logs_dir"])
def test_a_folder_that_cannot_be_written_is_named_before_anything_is_trained_or_deleted(
    flag, run, flags, tmp_path, capsys
):
    before = contents(run("--epochs=1").run_dir)
    (tmp_path / "file").write_text("")
    more = ["--overwrite", "--use_tensorboard", f"--{flag}={tmp_path / 'file'}"]
    assert main.run([*flags, *more]) == 1
    printed = capsys.readouterr()
    assert f"choose another --{flag}=" in printed.err and "Epoch" not in printed.out.partition("Epoch 1/1")[2]
    assert contents(get_config(flags).run_dir) == before


def test_overwriting_where_all_folders_are_one_keeps_the_lock(run, flags, tmp_path):
    places = [f"--{name}={tmp_path / 'one'}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    config = run("--epochs=1", *places)
    lock = config.run_dir / "lock"
    inode = lock.stat().st_ino
    (config.run_plots / "glimpses_9.npz").write_text("")
    again = run("--epochs=1", "--overwrite", "--use_tensorboard", *places)
    assert lock.stat().st_ino == inode and not (again.run_plots / "glimpses_9.npz").exists()


def test_runs_of_one_name_do_not_share_plots_and_logs(run, flags, tmp_path, capsys):
    config = run("--epochs=1", "--use_tensorboard")
    before = contents(config.run_plots), contents(config.run_logs)
    other = [*flags, f"--ckpt_dir={tmp_path / 'other'}", "--epochs=1"]
    for more in ([], ["--overwrite"], ["--use_tensorboard", f"--plot_dir={tmp_path / 'p'}"]):
        assert main.run([*other, *more]) == 1
        assert "is that of the run in" in capsys.readouterr().err
    assert main.run([*other, "--overwrite", f"--plot_dir={tmp_path / 'p'}"]) == 0  # its logs are not this one's
    assert (contents(config.run_plots), contents(config.run_logs)) == before
    moved = tmp_path / "moved"
    config.run_dir.parent.rename(moved)  # whose plots they were is gone
    assert main.run([*flags, f"--ckpt_dir={moved}", "--resume", "--epochs=2"]) == 0


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    path = tmp_path / "run" / "lock"
    path.parent.mkdir()
    child = os.fork()
    if child == 0:
        with locked(path):
            (tmp_path / "held").touch()
            signal.pause()
    while not (tmp_path / "held").exists():
        pass
    for _ in range(2):
        with pytest.raises(InputError, match=rf"another process trains in {path.parent} \(process {child} on "):
            locked(path, wait=False).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(path, wait=False):
        assert f"process {os.getpid()} on" in path.read_text()
    assert path.read_text() == ""


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(number, flags, monkeypatch, capsys):
    def none(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(training.run_folder.fcntl, "flock", none)
    assert main.run([*flags, "--epochs=1"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "has no locks" in line and "choose a --ckpt_dir= on another" in line
    assert not Path(get_config(flags).run_dir / "last.pt").exists()
