"""Ctrl-C at a real terminal, which signals all in its foreground: all is saved, and a resume costs nothing."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from helpers import ForkServer, Terminal, assert_same, metrics_of
from PIL import Image

from config import Config, get_config
from main import run as run_main
from search.options import parse
from search.storage import finished, open_study
from training.checkpoint import load_checkpoint

SMALL = ["--epochs=2", "--hidden_size=16", "--batch_size=16", "--compile=False"]


@pytest.fixture
def terminal(fork_server) -> Terminal:
    """Commands of the fork server run on it."""
    terminal = Terminal()
    fork_server.log = terminal.name
    return terminal


def assert_costs_nothing(straight: Config, parts: Config):
    """Both ended with the same bits."""
    for name in ("last.pt", "best.pt"):
        one, other = (load_checkpoint(config.run_dir / name) for config in (straight, parts))
        for checkpoint in (one, other):
            del checkpoint["config"]  # names the folders
        assert_same(one, other)
    one, other = ([(line["train"], line["valid"]) for line in metrics_of(config)] for config in (straight, parts))
    assert one == other


def run_in_two_parts(
    server: ForkServer, terminal: Terminal, at: str, flags: list[str], number=signal.SIGINT, count=1, **environment
) -> str:
    """Trains a run at once, and another that a signal to all its processes stops, and that resumes.

    Args:
        at, count: the signal comes when this has been shown so often.

    Returns:
        What the terminal showed until it was stopped.
    """
    server_log = server.log
    server.log = Path("/dev/null")
    assert server.wait(server.start(*flags, "--run_name=straight", **environment)) == 0
    server.log = server_log
    stopped = server.start(*flags, "--run_name=parts", **environment)
    terminal.wait_for(at, count)
    if number == signal.SIGINT:
        terminal.press_ctrl_c()
    else:  # as a queue does it
        os.killpg(stopped, number)
    assert server.wait(stopped) == 128 + number, terminal.printed
    shown = terminal.printed
    assert f"stopped by {number.name}" in shown and "Traceback" not in shown
    assert server.wait(server.start(*flags, "--run_name=parts", "--resume", **environment)) == 0, terminal.printed
    assert_costs_nothing(*(get_config([*flags, f"--run_name={name}"]) for name in ("straight", "parts")))
    return shown


def test_ctrl_c_in_training(fork_server, terminal, flags):
    assert "saved at step" in run_in_two_parts(fork_server, terminal, "Epoch 2/2: ", [*flags, *SMALL])


def test_ctrl_c_in_validation(fork_server, terminal, flags):
    shown = run_in_two_parts(fork_server, terminal, "Evaluate: ", [*flags, *SMALL, "--epochs=1", "--M=60"])
    assert "saved before the validation of epoch 1" in shown


@pytest.fixture
def noise(tmp_path) -> Path:
    """A folder of images in two classes, which take longer to decode than a step."""
    random = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "images" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (400, 400), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_while_workers_stream_a_folder(fork_server, terminal, flags, noise, number):
    flags = [*flags, *SMALL, "--task=folder", f"--data_dir={noise}", "--num_workers=2", "--batch_size=4"]
    # The bar moves once the workers work.
    shown = run_in_two_parts(fork_server, terminal, "Epoch 2/2: ", flags, number, count=2, IN_MEMORY="1000")
    assert "saved at step" in shown


@pytest.mark.slow
def test_ctrl_c_in_a_search(terminal, flags):
    argv = [*flags, "--epochs=10", "--trials=2", "--workers=2", "--prune=False", "--seeds=0",
            "--search", "std=log:0.02:0.3"]  # fmt: skip
    search = parse(argv)
    command = terminal.start("-m", "search", *argv)
    study = None
    while study is None or not any((trial.last_step or 0) >= 2 for trial in study.get_trials(deepcopy=False)):
        assert command.poll() is None, terminal.printed
        study = open_study(search)
    terminal.press_ctrl_c()
    assert command.wait(timeout=120) == 128 + signal.SIGINT
    assert "stopped by SIGINT, 0 of 2 trials finished" in terminal.printed and "Traceback" not in terminal.printed
    assert {trial.state.name for trial in study.trials} == {"FAIL"}  # given back
    assert terminal.start("-m", "search", *argv).wait(timeout=300) == 0, terminal.printed
    for trial in finished(study):
        config = search.trial_config(trial.user_attrs.get("slot", trial.number), **trial.user_attrs["settings"])
        std = f"--std={config.model.std}"
        assert run_main([*flags, "--epochs=10", std, "--run_name=straight", "--overwrite"]) == 0
        assert_costs_nothing(get_config([*flags, "--run_name=straight"]), config)


@pytest.mark.slow
def test_ctrl_c_in_a_team_of_torchrun(terminal, flags):
    team = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main.py", *flags, *SMALL]
    team += ["--batch_size=8", "--init_lr=5e-4"]
    assert terminal.start(*team, "--run_name=straight").wait(timeout=300) == 0, terminal.printed
    before = len(terminal.printed)
    command = terminal.start(*team, "--run_name=parts")
    terminal.wait_for("Epoch 2/2: ", count=terminal.printed.count("Epoch 2/2: ") + 1)
    terminal.press_ctrl_c()
    assert command.wait(timeout=120) != 0
    shown = terminal.printed[before:]
    assert shown.count("main.py: stopped by SIGINT, saved at step") == 1, shown
    assert terminal.start(*team, "--run_name=parts", "--resume").wait(timeout=300) == 0, terminal.printed
    assert_costs_nothing(*(get_config([*flags, *SMALL, f"--run_name={name}"]) for name in ("straight", "parts")))
