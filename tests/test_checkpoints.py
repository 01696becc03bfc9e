"""Checkpoints that are not what they should be end in one line, and nothing in them runs."""

import errno
import os
import resource
import zipfile
from pathlib import Path

import pytest
import torch

import plot_glimpses
import training.checkpoint
from config import make_config
from main import configure
from main import run as run_command
from model import RecurrentAttention
from training.checkpoint import load_checkpoint, model_of
from training.cli import InputError
from viz import games
from viz.record import load_glimpses, open_checkpoint


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


def test_one_that_may_not_be_read_is_not_called_damaged(run, flags, monkeypatch, capsys):
    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    config = run("--epochs=1")
    capsys.readouterr()
    monkeypatch.setattr(training.checkpoint, "check_archive", forbidden)
    assert run_command([*flags, "--is_train=False"]) == 1
    assert f"cannot use {config.run_dir / 'best.pt'} (Permission denied)" in capsys.readouterr().err


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


def zipped_anew(path: Path, compression: int, extra: bytes = b""):
    """The same archive, compressed or not, with one more member."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if extra:
            archive.writestr("extra", extra)


def test_saved_games_that_would_unpack_to_more_than_they_may_are_rejected(tmp_path, monkeypatch):
    path = tmp_path / "glimpses_1.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("frames.npy", bytes(1_000_001))
    monkeypatch.setattr(games, "LARGEST_FILE", 1_000_001)
    assert games.holds_games(path)
    monkeypatch.setattr(games, "LARGEST_FILE", 1_000_000)
    assert not games.holds_games(path)
    with pytest.raises(InputError, match="it holds more than it should"):
        games.load_games(path)


@pytest.mark.parametrize("kind", ["checkpoint", "glimpses"])
def test_a_file_that_would_unpack_to_more_than_its_size_is_rejected(run, kind):
    config = run("--epochs=1")
    path = config.run_dir / "best.pt" if kind == "checkpoint" else config.run_plots / "glimpses_1.npz"
    load = load_checkpoint if kind == "checkpoint" else load_glimpses
    zipped_anew(path, zipfile.ZIP_STORED)
    load(path)
    zipped_anew(path, zipfile.ZIP_DEFLATED, bytes(10_000_000))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=r"damaged or not a checkpoint|does not hold saved glimpses"):
        load(path)


@pytest.mark.parametrize(
    "sizes",
    [{"hidden_size": 100_000}, {"glimpse_hidden": 10**9}, {"num_patches": 2**31 - 1}, {"num_glimpses": 10**9},
     {"hidden_size": 10**6, "expand": True}],
)  # fmt: skip
def test_a_small_file_of_a_huge_model_takes_no_memory(run, sizes):
    """The limit is of this test's process: a model that was made before its shapes are compared would pass it."""
    config = run("--epochs=1")
    path = config.run_dir / "best.pt"
    checkpoint = load_checkpoint(path)
    expand = sizes.pop("expand", False)
    checkpoint["model_args"].update(sizes)
    if expand:  # weights of the right shapes that take a few bytes of the file
        with torch.device("meta"):
            model = RecurrentAttention(**checkpoint["model_args"])
        shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        checkpoint["model_state"] = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save(checkpoint, path)
    assert path.stat().st_size < 1_000_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="holds another model: its sizes are not those of its weights"):
        model_of(load_checkpoint(path), path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_strangers_checkpoint_chooses_no_folder_and_no_setting_of_the_machine(run, tmp_path, monkeypatch, capsys):
    config = run("--epochs=1", "--num_workers=3")
    path = tmp_path / "theirs" / config.name / "model.pt"
    path.parent.mkdir(parents=True)
    checkpoint = load_checkpoint(config.run_dir / "best.pt")
    theirs = str(tmp_path / "chosen")
    folders = dict.fromkeys(("data_dir", "ckpt_dir", "logs_dir", "plot_dir"), theirs)
    checkpoint["config"].update(folders, num_workers=1_000_000, wandb="theirs", use_tensorboard=True)
    torch.save(checkpoint, path)
    monkeypatch.chdir(tmp_path)
    here = configure(["--is_train=False", f"--checkpoint={path}"])
    defaults = make_config()
    assert here.data.data_dir == defaults.data.data_dir and here.data.num_workers == defaults.data.num_workers
    assert here.machine == defaults.machine and here.training.M == config.training.M
    source = open_checkpoint(path)
    assert source.config.data.data_dir == defaults.data.data_dir and source.config.machine == defaults.machine
    [picture] = plot_glimpses.main(plot_glimpses.PlotConfig(checkpoint=str(path), num_images=1))
    assert picture.resolve() == tmp_path / "plots" / config.name / "model.gif"
    assert not (tmp_path / "chosen").exists()
