"""Checkpoints that are not what they should be end in one line, and nothing in them runs."""

import os

import pytest
import torch

import training.checkpoint
from main import run as run_command
from training.checkpoint import load_checkpoint
from training.cli import InputError


def test_a_newer_format_is_rejected(run, flags, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(training.checkpoint, "FORMAT", 99)
        run("--epochs=1")
    assert run_command([*flags, "--resume=True"]) == 1
    assert "has format 99, and this version reads up to 2" in capsys.readouterr().err


def test_a_folder_in_its_place_is_named(run, flags, capsys):
    config = run("--epochs=1")
    (config.run_dir / "last.pt").unlink()
    (config.run_dir / "last.pt").mkdir()
    assert run_command([*flags, "--resume=True"]) == 1
    assert "is a folder, not a checkpoint" in capsys.readouterr().err


def test_another_architecture_is_named(run, flags, capsys):
    config = run("--epochs=1")
    checkpoint = load_checkpoint(config.run_dir / "last.pt")
    checkpoint["model_args"]["hidden_size"] = 40
    torch.save(checkpoint, config.run_dir / "last.pt")
    assert run_command([*flags, "--resume=True"]) == 1
    assert "holds another model" in capsys.readouterr().err


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"format": 1, "epoch": Bomb()}, tmp_path / "last.pt")
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()
