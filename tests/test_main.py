"""The commands as a user types them: what goes wrong ends with one line and a non-zero exit, and loses nothing."""

import dataclasses
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, assert_one_line, command, contents

import main
from training.cli import Settings, run_command


def ram(*flags: str) -> subprocess.CompletedProcess:
    return command("main.py", *flags)


@pytest.fixture
def trained(run):
    return run("--epochs=1")


def test_a_typo_in_a_flag():
    result = ram("--num_glimpse=6")
    assert result.returncode != 0
    assert "--num_glimpses" in result.stderr and "Traceback" not in result.stderr


def test_help_waits_for_nothing_heavy():
    heavy = "{'torch', 'torchvision', 'numpy', 'matplotlib', 'sklearn'}"
    code = f"import main, sys; main.get_config([]); sys.exit(bool({heavy} & sys.modules.keys()))"
    assert command("-c", code).returncode == 0


def test_help_into_a_pipe_that_nobody_reads():
    end, pipe = os.pipe()
    os.close(end)
    try:
        result = subprocess.run([sys.executable, "main.py", "--help"], stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT)
    finally:
        os.close(pipe)
    assert result.returncode == 1
    assert not result.stderr


def test_a_value_out_of_range():
    assert_one_line(ram("--std=0"), "std=0.0 is not allowed", "above 0")


def assert_rejected(capsys, flags: list[str], *hints: str):
    """As `assert_one_line`, of a command within this process, which is quicker."""
    assert main.run(flags) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert all(hint in line for hint in hints), line


def test_what_the_file_system_rejects(flags, trained, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert_rejected(capsys, ["--task=folder", f"--data_dir={tmp_path / 'file'}", *flags[1:]], "file/train", "fix that")
    assert_rejected(capsys, [*flags, f"--run_name={'long' * 80}", "--is_train=False"], "File name too long", "fix that")


def test_more_than_fits_into_memory(flags, capsys):
    assert_rejected(capsys, [*flags, "--canvas_size=1000000"], "out of memory: choose smaller batches, canvases")


def test_a_run_without_a_best_model_yet(flags, trained, capsys):
    (trained.run_dir / "best.pt").unlink()
    assert_rejected(capsys, [*flags, "--is_train=False"], "no checkpoint at", "--best=False tests last.pt")


def test_a_mistyped_run_is_not_found(flags, trained, capsys):
    (trained.run_dir / "best.pt").rename(trained.run_dir.parent / "digits.pt")
    (trained.run_dir / "params.json").rename(trained.run_dir.parent / "digits.json")
    assert_rejected(capsys, [*flags, "--run_name=typo", "--is_train=False"], "no checkpoint", "typo/best.pt")


def test_metrics_that_are_none_cost_no_test(flags, trained, capsys):
    (trained.run_dir / "metrics.jsonl").write_text("{}\n")
    assert main.run([*flags, "--is_train=False"]) == 0
    printed = capsys.readouterr().out
    assert "Test Acc" in printed and "metrics.jsonl is damaged" in printed
    assert_rejected(capsys, [*flags, "--resume=True", "--epochs=2"], "metrics.jsonl is damaged")


def test_no_checkpoint_to_resume_or_to_test(flags):
    for more in ("--resume=True", "--is_train=False"):
        assert_one_line(ram(*flags, more), "no checkpoint at", "train first")


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"cos\nsystem\n(S'true'\ntR."]
)
def test_a_checkpoint_that_is_not_whole(flags, trained, damage):
    path = trained.run_dir / "last.pt"
    path.write_bytes(damage(path.read_bytes()))
    before = contents(trained.run_dir)
    assert_one_line(ram(*flags, "--resume=True"), str(path), "damaged or not a checkpoint")
    assert contents(trained.run_dir) == before


@pytest.mark.parametrize("lost", [[], ["last.pt"]], ids=["whole", "best.pt alone"])
def test_a_folder_that_holds_another_run(flags, trained, lost):
    for name in lost:
        (trained.run_dir / name).unlink()
    before = contents(trained.run_dir)
    result = ram(*flags, "--epochs=1")
    assert_one_line(result, str(trained.run_dir), "--resume=True", "--run_name=", "--overwrite=True")
    assert contents(trained.run_dir) == before


def test_settings_that_cannot_be_read(flags, trained):
    (trained.run_dir / "params.json").write_text('{"std": ')
    assert_one_line(ram(*flags, "--resume=True"), "params.json does not hold a run's settings")


def test_a_truncated_idx_file(tmp_path, trained, flags):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x0a")
    before = contents(trained.run_dir)
    result = ram(*flags[1:], f"--data_dir={tmp_path / 'data'}")
    assert_one_line(result, str(raw), "train-images-idx3-ubyte", "damaged")
    assert contents(trained.run_dir) == before


def test_glimpses_that_were_never_saved(tmp_path):
    assert_one_line(command("plot_glimpses.py", f"--plot_dir={tmp_path}"), "no saved glimpses", "--plot_dir=")


@pytest.mark.slow
def test_train_resume_and_test_on_real_mnist(flags, mnist_dir):
    """The three everyday commands, shrunk, on the real images."""
    common = [*flags[1:], f"--data_dir={mnist_dir}", "--batch_size=1024"]
    assert "Train on 54000 samples, validate on 6000" in ram(*common, "--epochs=1").stdout
    resumed = ram(*common, "--resume=True", "--epochs=2").stdout
    assert "Epoch 2/2" in resumed and "Epoch 1/2" not in resumed
    tested = ram(*[flag for flag in common if "_dir=" in flag], "--num_glimpses=3", "--is_train=False").stdout
    correct = int(re.search(r"Test Acc: (\d+)/10000", tested).group(1))
    assert correct > 1500  # chance is 1,000


def test_ctrl_c_ends_every_command_with_a_line(capsys):
    @dataclasses.dataclass(frozen=True)
    class Nothing(Settings):
        """No settings."""

    def interrupted(config: Nothing):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["tool"])
        run_command(interrupted, Nothing, prog="tool")
    assert ended.value.code == 130 and capsys.readouterr().err == "tool: interrupted\n"
