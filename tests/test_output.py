"""What only shows or reports stops no training: a lost terminal, a full disk, settings of matplotlib, odd names."""

import os
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from helpers import ROOT, command, make_glimpses, metrics_of
from matplotlib import pyplot

import main
import viz.figures
from config import get_config, make_config
from training.checkpoint import load_checkpoint
from training.cli import printable
from training.run_folder import environment
from viz import reports
from viz.files import png, to_image
from viz.tensorboard import TensorBoardLog

NAMES = ["caf\udce9", "\u732b", "a\nb", "\x1b[31mred"]  # no UTF-8; a letter that the font lacks; control characters


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]], ids=["stdout", "stderr", "all"])
def test_a_closed_stream_stops_no_training_and_nothing_is_written_into_its_files(flags, closed):
    def close():
        for descriptor in closed:
            os.close(descriptor)

    code = "import os, sys, main; code = main.run(sys.argv[1:]); os.write(2, b'a warning'); os._exit(code)"
    done = subprocess.run([sys.executable, "-c", code, *flags, "--epochs=1"], cwd=ROOT, preexec_fn=close)
    assert done.returncode == 0
    assert len(metrics_of(get_config(flags))) == 1
    assert main.run([*flags, "--is_train=False"]) == 0  # the checkpoint is whole


def test_a_pipe_that_nobody_reads_is_reported_once_and_stops_no_training(flags):
    end, pipe = os.pipe()
    os.close(end)
    done = subprocess.run([sys.executable, "main.py", *flags, "--epochs=2"], cwd=ROOT, stdout=pipe,
                          stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(pipe)
    assert (done.returncode, done.stderr) == (0, "[!] cannot write to stdout (Broken pipe): continuing without\n")
    assert len(metrics_of(get_config([*flags, "--epochs=2"]))) == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_for_the_output_stops_no_training(flags):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "main.py", *flags, "--epochs=1"], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert done.returncode == 0 and done.stderr.count("No space left on device") == 1
    assert len(metrics_of(get_config(flags))) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("latex was not found")])
def test_reports_that_fail_are_reported_once_each_and_stop_nothing(run, monkeypatch, capsys, error):
    def fail(*arguments):
        raise error

    for name in ("add_epoch", "add_glimpses", "add_result"):
        monkeypatch.setattr(TensorBoardLog, name, fail)
    monkeypatch.setattr(reports, "save_glimpses", fail)
    monkeypatch.setattr(viz.figures, "curves_figure", fail)
    config = run("--epochs=3", "--use_tensorboard")
    assert len(metrics_of(config)) == 3 and (config.run_dir / "last.pt").exists()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[!]")]
    assert len(printed) == 3 and all(str(error) in line for line in printed), printed


def test_no_setting_of_the_users_matplotlib_reaches_the_pictures(glimpses):
    plain = [png(viz.figures.path_figure(glimpses)), np.asarray(to_image(viz.figures.frame_figure(glimpses, 0)))]
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 30, "font.size": 30, "axes.facecolor": "red"}):
        again = [png(viz.figures.path_figure(glimpses)), np.asarray(to_image(viz.figures.frame_figure(glimpses, 0)))]
        assert pyplot.rcParams["font.size"] == 30  # which are the user's still
    assert plain[0] == again[0]
    np.testing.assert_array_equal(plain[1], again[1])


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_the_backend_of_a_notebooks_kernel_stops_no_training(flags, backend):
    done = command("main.py", *flags, "--epochs=1", "--use_tensorboard", env={**os.environ, "MPLBACKEND": backend})
    assert done.returncode == 0 and "[!]" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert (get_config(flags).run_plots / "curves.png").exists()


@pytest.mark.parametrize("name", NAMES)
def test_names_that_cannot_be_drawn_are_replaced_without_a_warning(glimpses, name):
    odd = make_glimpses(glimpses.images, glimpses.locations, classes=np.array([name, "one", "two"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (viz.figures.path_figure(odd), viz.figures.frame_figure(odd, 0)):
            to_image(figure)
    assert viz.figures.short(["one", "\u732b"], 1) == "#1" and viz.figures.short(["one", "\u732b"], 0) == "one"


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stays_on_its_line_and_moves_no_cursor(tmp_path, name, capsys):
    assert printable("plain é") == "plain é"
    assert main.run(["--task=folder", f"--data_dir={tmp_path / name}", f"--ckpt_dir={tmp_path}"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert printable(name) in line and all(letter.isprintable() for letter in line)


def test_the_number_of_parameters_is_shown_at_the_start(run, capsys):
    config = run("--epochs=1")
    count = sum(weight.numel() for weight in load_checkpoint(config.run_dir / "last.pt")["model_state"].values())
    assert f"[*] Number of model parameters: {count:,}\n" in capsys.readouterr().out


def test_the_environment_names_versions_and_changes_of_the_checkout(monkeypatch):
    asked = []

    def git(words, **options):
        asked.append(words)
        return subprocess.CompletedProcess(words, 0, "abc-dirty\n")

    monkeypatch.setattr(subprocess, "run", git)
    found = environment()
    assert found["commit"] == "abc-dirty" and "--dirty" in asked[0]
    for name in ("python", "torch", "torchvision", "numpy", "pillow", "scikit-learn"):
        assert found["versions"][name][0].isdecimal()


def test_no_password_of_a_database_is_recorded(monkeypatch):
    for url in ("postgresql+psycopg://me:secret@host/name", "mysql://me:se@cret/@host/name?password=secret&a=b"):
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "search", f"--storage={url}", "--trials=3"])
        command = environment()["command"]
        assert "cret" not in command and "me:***@host/name" in command and command.endswith("--trials=3")


def test_weights_and_biases_gets_what_tensorboard_gets(flags, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; nothing else needs it")
    folder = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = command("main.py", *flags, "--epochs=2", "--wandb=mine", env=folder)
    assert done.returncode == 0, done.stderr
    config = get_config(flags)
    [record] = config.run_dir.glob("wandb/offline-run-*/*.wandb")
    assert b"loss_action/valid" in record.read_bytes() or record.stat().st_size > 1000
    first = (config.run_dir / "wandb_id").read_text()
    assert command("main.py", *flags, "--epochs=3", "--resume", "--wandb=mine", env=folder).returncode == 0
    assert (config.run_dir / "wandb_id").read_text() == first


def test_weights_and_biases_that_is_not_installed_is_said_before_the_training(flags, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main.run([*flags, "--epochs=1", "--wandb=mine"]) == 1
    assert "pip install wandb" in capsys.readouterr().err
    assert make_config().machine.wandb == ""
