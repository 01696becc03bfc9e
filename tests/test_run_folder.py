"""A run's folders: who may write to them, what --overwrite deletes, and one command that begins or continues."""

import errno
import os
import signal
from pathlib import Path

import pytest
from helpers import contents, metrics_of

import main
import training.run_folder
from config import get_config, make_config
from training.checkpoint import load_checkpoint
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
