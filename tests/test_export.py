"""A shipped model is small, and tests as the run that it comes from."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from config import InputError, get_config
from export import Export, main
from main import main as train_or_test
from model import RecurrentAttention
from runs import load_checkpoint


def test_a_shipped_model_tests_as_its_run_did_and_is_no_run(run, tmp_path, capsys):
    config = run("--epochs=1", "--run_name=mine")
    capsys.readouterr()
    run("--is_train=False", "--run_name=mine")
    of_run = capsys.readouterr().out
    path = main(Export(str(config.run_dir), str(tmp_path / "models")))
    assert path.stat().st_size < (config.run_dir / "best.pt").stat().st_size / 2
    capsys.readouterr()
    for _ in range(2):  # the first leaves nothing that would hide the model from the second
        train_or_test(get_config(["--is_train=False", "--task=digits", f"--ckpt_dir={path.parent}", "--use_gpu=False"]))
        assert capsys.readouterr().out == of_run
    assert {file.name for file in path.parent.iterdir()} == {"digits.pt", "digits.json"}
    assert RecurrentAttention.load(path).num_glimpses == 3


def test_half_precision_halves_the_weights_and_rounds_them(run, tmp_path):
    config = run("--epochs=1")
    whole, half = (main(Export(str(config.run_dir), str(tmp_path / f"{half}"), half)) for half in (False, True))
    small, large = (sum(w.nbytes for w in load_checkpoint(path)["model_state"].values()) for path in (half, whole))
    assert small == large / 2
    exact, rounded = (RecurrentAttention.load(path).state_dict() for path in (whole, half))
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    for name in exact:
        torch.testing.assert_close(rounded[name], exact[name], rtol=2**-11, atol=2**-24)


def test_a_shipped_model_cannot_be_gone_on_with(run, tmp_path):
    config = run("--epochs=1")
    path = main(Export(str(config.run_dir), str(tmp_path / "models")))
    (config.run_dir / "last.pt").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="not a whole checkpoint"):
        run("--epochs=2", "--resume=True")


def test_no_run_is_one_line(tmp_path):
    command = [sys.executable, "export.py", f"--run_dir={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("export.py: no checkpoint at") and ended.stderr.count("\n") == 1
