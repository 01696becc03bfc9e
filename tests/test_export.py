"""A shipped model is small, holds nothing of its author's machine, and tests as the run that it comes from."""

import pytest
import torch
from helpers import ROOT, assert_one_line, command

from config import FREE, HINTS, config_of, make_config, names_marked
from main import configure
from main import main as train_or_test
from model import RecurrentAttention
from tools.export import Export, main
from training.checkpoint import MODEL_KEYS, load_checkpoint
from training.cli import InputError

SHIPPED = sorted((ROOT / "models").glob("*.pt"))


def test_a_shipped_model_tests_as_its_run_did_and_is_no_run(run, tmp_path, capsys):
    config = run("--epochs=1", "--run_name=mine")
    capsys.readouterr()
    run("--is_train=False", "--run_name=mine")
    of_run = capsys.readouterr().out
    path = main(Export(str(config.run_dir), str(tmp_path / "models")))
    assert path.stat().st_size < (config.run_dir / "best.pt").stat().st_size / 2
    capsys.readouterr()
    for _ in range(2):  # the first leaves nothing that would hide the model from the second
        train_or_test(configure(["--is_train=False", f"--checkpoint={path}", "--use_gpu=False"]))
        assert capsys.readouterr().out == of_run
    assert [file.name for file in path.parent.iterdir()] == ["digits.pt"]
    assert RecurrentAttention.load(path).num_glimpses == 3


def test_a_shipped_model_holds_the_settings_of_its_training_and_none_of_the_call_and_the_machine(run, tmp_path):
    config = run("--epochs=1", "--run_name=mine", "--num_workers=1")
    exported = load_checkpoint(main(Export(str(config.run_dir), str(tmp_path / "models"))))
    assert exported.keys() == MODEL_KEYS.keys()
    expected, defaults = config.flat(), make_config().flat()
    assert any(expected[name] != defaults[name] for name in names_marked(FREE))
    expected.update({name: defaults[name] for name in names_marked(FREE)})
    assert exported["config"] == expected


def test_half_precision_halves_the_weights_and_rounds_them(run, tmp_path):
    config = run("--epochs=1")
    whole, half = (main(Export(str(config.run_dir), str(tmp_path / f"{half}"), half)) for half in (False, True))
    small, large = (sum(w.nbytes for w in load_checkpoint(path)["model_state"].values()) for path in (half, whole))
    assert small == large / 2
    exact, rounded = (RecurrentAttention.load(path).state_dict() for path in (whole, half))
    assert any(not torch.equal(exact[name], rounded[name]) for name in exact)
    for name in exact:
        torch.testing.assert_close(rounded[name], exact[name], rtol=2**-11, atol=2**-24)


def test_a_shipped_model_cannot_be_resumed(run, tmp_path):
    config = run("--epochs=1")
    path = main(Export(str(config.run_dir), str(tmp_path / "models")))
    (config.run_dir / "last.pt").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="not a whole checkpoint"):
        run("--epochs=2", "--resume=True")


def test_no_run_is_one_line(tmp_path):
    result = command("-m", "tools.export", f"--run_dir={tmp_path}")
    assert_one_line(result, "tools.export: no checkpoint at")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_models_are_as_the_export_writes_them(path):
    model = load_checkpoint(path)
    assert model.keys() == MODEL_KEYS.keys()
    assert HINTS.keys() - names_marked(FREE) <= model["config"].keys() <= HINTS.keys()
    config, defaults = config_of(model["config"], path), make_config().flat()
    assert config.data.task == path.stem
    assert all(config.flat()[name] == defaults[name] for name in names_marked(FREE))
    RecurrentAttention.load(path)
