"""Nothing that was saved is lost: kills, signals, full disks, two at once."""

import errno
import os
import random
import resource
import signal
import time

import pytest
import torch
from helpers import assert_same, contents, metrics_of, train

import training.checkpoint
from config import get_config
from main import run as run_command
from model import RecurrentAttention
from trainer import Trainer
from training.checkpoint import load_checkpoint, write_whole
from training.cli import InputError
from utils import Interrupted, StopSignal

CPU = torch.device("cpu")


def saved(config) -> list[dict]:
    """Both checkpoints without the settings, which name the folders."""
    checkpoints = [load_checkpoint(config.run_dir / name) for name in ("last.pt", "best.pt")]
    for checkpoint in checkpoints:
        del checkpoint["config"]
    return checkpoints


@pytest.mark.slow
def test_fifty_kills_lose_nothing(server, flags, run, tmp_path):
    """SIGKILL at random moments: each time the run resumes, and it ends where an undisturbed one does, to the bit."""
    more = ["--epochs=60", "--hidden_size=16", "--batch_size=32", "--save_every_steps=4", "--compile=False"]
    straight = run(*more, "--run_name=straight")
    config = get_config([*flags, *more, "--run_name=killed"])
    moments, best, killed = random.Random(0), 0.0, 0
    last = config.run_dir / "last.pt"

    def written() -> int | None:
        return last.stat().st_mtime_ns if last.exists() else None

    for kill in range(50):
        server.log = tmp_path / f"log{kill}"
        before = written()
        pid = server.start(*flags, *more, "--run_name=killed", f"--resume={before is not None}")
        if kill % 5:  # a fifth of the kills fall into the start
            server.wait_for("Train on")
        end = time.monotonic() + 10 * (kill % 5 == 1)  # another fifth follow a saving, however slow the machine is
        while written() == before and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        killed += server.wait(pid) == -signal.SIGKILL
        for path in config.run_dir.glob("*.pt"):
            checkpoint = load_checkpoint(path)
            if path.name == "best.pt":
                assert checkpoint["best_valid_acc"] >= best
                best = checkpoint["best_valid_acc"]
    assert killed > 40
    assert server.wait(server.start(*flags, *more, "--run_name=killed", "--resume=True")) == 0, server.log.read_text()
    assert_same(saved(straight), saved(config))
    assert [line["epoch"] for line in metrics_of(config)] == list(range(1, 61))
    assert not any("Traceback" in log.read_text() for log in tmp_path.glob("log*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_says_how_to_resume_and_costs_nothing(server, flags, run, number):
    more = ["--epochs=3", "--hidden_size=16", "--batch_size=16", "--compile=False"]
    straight = run(*more, "--run_name=straight")
    config = get_config([*flags, *more, "--run_name=stopped"])
    pid = server.start(*flags, *more, "--run_name=stopped")
    server.wait_for("Epoch 1/3")
    time.sleep(0.03)
    os.kill(pid, number)
    assert server.wait(pid) == 128 + number
    last = server.log.read_text().splitlines()[-1]
    assert "--resume=True continues from there" in last and signal.Signals(number).name in last
    stopped = load_checkpoint(config.run_dir / "last.pt")
    assert (stopped["epoch"], stopped["step"]) > (0, 0)
    assert server.wait(server.start(*flags, *more, "--run_name=stopped", "--resume=True")) == 0
    assert_same(saved(straight), saved(config))


def test_ctrl_c_elsewhere_than_in_a_training_says_so(flags, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("main.main", interrupted)
    assert run_command(flags) == 130
    assert capsys.readouterr().err == "main.py: interrupted\n"


TASKS = {
    "digits": [],
    "canvas": ["--canvas_size=34", "--num_clutter=2"],
    "sgd": ["--optimizer=sgd", "--init_lr=0.01", "--clip_grad_norm=1"],
    "plateau, scales": [
        "--lr_patience=0",
        "--num_patches=2",
        "--glimpse_scale=2",
        "--locator_hidden=0",
        "--scan_radius=0",
    ],
    "lstm, unlearned": ["--core=lstm", "--core_init=identity", "--policy=scan"],
    "one glimpse": ["--num_glimpses=1", "--optimizer=adam"],
}


@pytest.mark.parametrize("more", TASKS.values(), ids=TASKS)
def test_a_run_in_parts_equals_a_run_in_one(run, more, monkeypatch):
    """Stopped after an epoch, then within one, then resumed: weights, optimizer, schedule and metrics to the bit."""
    straight = run("--epochs=4", "--run_name=straight", *more)
    parts = run("--epochs=4", "--run_name=parts", "--stop_after_epoch=1", *more)
    assert len(metrics_of(parts)) == 1
    train_step = Trainer.train_step

    def step_and_signal(trainer, *step):
        if (trainer.progress.epoch, trainer.progress.step) == (2, 7):
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(trainer, *step)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="saved at step 8 of epoch 3"):
        patched.setattr(Trainer, "train_step", step_and_signal)
        run("--run_name=parts", "--resume=True", *more)
    first_part = load_checkpoint(parts.run_dir / "last.pt")["seconds"]
    run("--run_name=parts", "--resume=True", *more)
    assert 0 < first_part < metrics_of(parts)[2]["seconds"]
    assert_same(saved(straight), saved(parts))
    for a, b in zip(metrics_of(straight), metrics_of(parts), strict=True):
        assert_same([a["train"], a["valid"], a["lr"]], [b["train"], b["valid"], b["lr"]])


def test_two_runs_of_one_seed_agree_to_the_bit_and_two_seeds_differ(run):
    runs_ = [
        run("--epochs=2", f"--run_name={name}", f"--random_seed={seed}")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    checkpoints = [saved(config) for config in runs_]
    assert_same(checkpoints[0], checkpoints[1])
    assert checkpoints[0][0]["best_valid_acc"] != checkpoints[2][0]["best_valid_acc"]


def test_whatever_else_draws_random_numbers_changes_nothing(run, monkeypatch):
    """Order, first locations and noise come from generators of their own, not from torch's global one."""
    alone = run("--epochs=2", "--run_name=alone")
    train_step = Trainer.train_step

    def draw_and_step(trainer, *step):
        torch.rand(7)
        return train_step(trainer, *step)

    monkeypatch.setattr(Trainer, "train_step", draw_and_step)
    disturbed = run("--epochs=2", "--run_name=disturbed")
    assert_same(saved(alone)[0]["model_state"], saved(disturbed)[0]["model_state"])


@pytest.mark.filterwarnings("error:Detected call of")
def test_a_signal_after_an_epochs_last_step_costs_nothing(run, flags, monkeypatch):
    """The checkpoint is of a whole pass that was not validated yet: a resume has no step left of it."""
    alone = run("--epochs=2", "--run_name=alone")
    train_step = Trainer.train_step

    def last_step_and_signal(trainer, *step):
        losses = train_step(trainer, *step)
        if trainer.progress.step == len(trainer.train_loader) - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", last_step_and_signal)
        assert run_command([*flags, "--epochs=2", "--run_name=cut"]) == 128 + signal.SIGTERM
    resumed = run("--epochs=2", "--run_name=cut", "--resume=True")
    assert_same(saved(alone)[0]["model_state"], saved(resumed)[0]["model_state"])


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("batch", [1, 9], ids=["first batch", "last batch"])
def test_a_signal_during_validation_stops_at_once_and_a_resume_validates_again(
    run, flags, monkeypatch, capsys, epoch, batch
):
    """143 validation images are nine batches of 16."""
    more = ["--epochs=2", "--batch_size=16", "--lr_patience=0"]
    alone = run(*more, "--run_name=alone")
    forward, seen = RecurrentAttention.forward, []

    def forward_and_signal(model, images, *arguments):
        if not model.training:
            seen.append(len(images))
            if len(seen) == (epoch - 1) * 10 + batch:  # a tenth batch is the one whose glimpses are saved
                os.kill(os.getpid(), signal.SIGTERM)
        return forward(model, images, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RecurrentAttention, "forward", forward_and_signal)
        assert run_command([*flags, *more, "--run_name=cut"]) == 128 + signal.SIGTERM
    assert f"stopped by SIGTERM, saved before the validation of epoch {epoch}; " in capsys.readouterr().err
    assert len(seen) == (epoch - 1) * 10 + batch  # none after the signal
    resumed = run("--run_name=cut", "--resume=True")
    assert_same(saved(alone), saved(resumed))
    assert [line["valid"] for line in metrics_of(alone)] == [line["valid"] for line in metrics_of(resumed)]


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored():
    """As nohup has it with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_failing_write_leaves_the_old_file_and_says_so(run, flags, call, nth, monkeypatch, capsys):
    """Every call of every write of a resumed epoch fails once, as on a full disk."""
    config = run("--epochs=1", "--init_lr=1e-9")
    before = contents(config.run_dir)
    original, calls = getattr(os, call), []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        code = run_command([*flags, "--resume=True", "--epochs=2"])
    if len(calls) < nth:
        assert code == 0
        return
    printed = capsys.readouterr()
    if code == 0:  # what only reports, which a training is not stopped for
        message = next(line for line in printed.out.splitlines() if line.startswith("[!]"))
        assert "curves.png" in message or "glimpses_2.npz" in message
    else:
        message = printed.err
        assert code == 1 and len(message.splitlines()) == 1
    assert "No space left on device" in message
    assert not list(config.run_dir.glob("*.tmp"))
    for path in config.run_dir.glob("*.pt"):
        assert load_checkpoint(path)["epoch"] in (1, 2)
    if call == "replace":
        assert contents(config.run_dir)[config.run_dir / "best.pt"] == before[config.run_dir / "best.pt"]
    assert run_command([*flags, "--resume=True", "--epochs=2"]) == 0
    assert load_checkpoint(config.run_dir / "last.pt")["epoch"] == 2


def test_a_folder_that_turned_read_only_leaves_the_files_and_says_so(run, flags, monkeypatch, capsys):
    config = run("--epochs=1")
    before = contents(config.run_dir)

    def refuse(path, mode="r"):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(training.checkpoint, "open", refuse, raising=False)
        assert run_command([*flags, "--resume=True", "--epochs=2"]) == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "Read-only file system" in message
    assert contents(config.run_dir) == before


def test_a_file_too_large_for_the_disk_leaves_the_old_one(tmp_path):
    """The kernel itself refuses the write, half way."""
    path = tmp_path / "last.pt"
    write_whole(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(InputError, match=r"File too large.*what was saved before is still there"):
            write_whole(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == {path: b"old"}


def test_a_folder_that_cannot_be_made_is_named(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_command([*flags, f"--ckpt_dir={tmp_path / 'file'}"]) == 1
    assert "choose another --ckpt_dir=" in capsys.readouterr().err


def test_a_second_process_on_one_run_is_rejected_until_the_first_dies(server, flags, tmp_path):
    more = ["--epochs=1000", "--run_name=shared", "--compile=False"]
    first = server.start(*flags, *more)
    folder = get_config([*flags, *more]).run_dir
    while not (folder / "last.pt").exists():
        time.sleep(0.02)
    server.log = tmp_path / "second"
    for second in (["--resume=True"], ["--overwrite=True"]):
        assert server.wait(server.start(*flags, *more, *second)) == 1
    assert server.log.read_text().count("another process trains in") == 2
    os.kill(first, signal.SIGKILL)
    server.wait(first)
    resumed = server.start(*flags, "--run_name=shared", "--resume=True", "--epochs=1000", "--stop_after_epoch=1")
    assert server.wait(resumed) == 0


def test_a_run_that_went_on_while_this_process_started_is_not_set_back(run):
    config = run("--epochs=1")
    stale = load_checkpoint(config.run_dir / "last.pt")
    config = run("--resume=True", "--epochs=2")
    before = {name: (config.run_dir / name).read_bytes() for name in ("last.pt", "params.json")}
    with pytest.raises(InputError, match="another process has trained on"):
        train(config.replace(epochs=3), stale)
    assert before == {name: (config.run_dir / name).read_bytes() for name in before}


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run, flags, monkeypatch):
    config = run("--epochs=1")
    before = (config.run_dir / "last.pt").read_bytes()
    train_step = Trainer.train_step

    def poison(trainer, *step):
        if trainer.progress.step == 6:
            trainer.model.baseliner.expected_reward.bias.data.fill_(float("nan"))
        return train_step(trainer, *step)

    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(InputError, match=r"the baseline loss is nan at step 7 of epoch 2: .*last.pt is from before it"):
        run("--resume=True", "--epochs=2")
    assert (config.run_dir / "last.pt").read_bytes() == before
    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert run("--resume=True", "--epochs=2", "--clip_grad_norm=1").training.clip_grad_norm == 1  # as the line advises


def test_weights_that_are_not_finite_after_a_step_are_not_saved(run, flags):
    """Its losses are of before the step."""
    with pytest.raises(InputError, match=r"the weights are not finite after step 1 of epoch 1: .*nothing was saved"):
        run("--optimizer=adam", "--init_lr=3e38", "--batch_size=2000")
    assert not (get_config(flags).run_dir / "last.pt").exists()
