"""Flags become a Config, or one clear line."""

import dataclasses
import inspect
import re
import subprocess
import sys
from typing import get_args

import pytest
from conftest import ROOT

from config import FREE_ON_RESUME, FREE_ON_TEST, TASKS, Config, InputError, get_config

ORIGINAL_FLAGS = {
    "loc_hidden",
    "use_gpu",
    "init_lr",
    "train_patience",
    "plot_freq",
    "epochs",
    "num_glimpses",
    "use_tensorboard",
    "momentum",
    "patch_size",
    "shuffle",
    "logs_dir",
    "M",
    "lr_patience",
    "is_train",
    "glimpse_hidden",
    "num_patches",
    "resume",
    "glimpse_scale",
    "show_sample",
    "best",
    "data_dir",
    "valid_size",
    "batch_size",
    "std",
    "hidden_size",
    "ckpt_dir",
    "print_freq",
    "random_seed",
}


def test_the_original_flags_are_all_there():
    assert {field.name for field in dataclasses.fields(Config)} >= ORIGINAL_FLAGS


def test_every_field_has_a_doc_that_help_shows(capsys):
    with pytest.raises(SystemExit) as stop:
        get_config(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert f"--{field.name} " in shown
    source = (ROOT / "config.py").read_text()
    body = source[source.index("class Config") : source.index("def __post_init__")]
    assert len(re.findall(r'^    """', body, re.MULTILINE)) == len(dataclasses.fields(Config)) + 1


def test_every_field_is_read_outside_config():
    text = "".join(path.read_text() for path in ROOT.glob("*.py") if path.name != "config.py")
    in_properties = {"run_name", "ckpt_dir", "logs_dir", "plot_dir", "best", "task"}  # through name, run_dir, ...
    model_args = inspect.getsource(Config.model_args)
    names = [field.name for field in dataclasses.fields(Config)]
    dead = [name for name in names if not re.search(rf"config\.{name}\b", text) and f'"{name}"' not in model_args]
    assert set(dead) <= in_properties


def test_tasks_and_their_choices_agree():
    assert set(TASKS) == set(get_args(Config.__dataclass_fields__["task"].type))


def test_a_task_sets_defaults_that_flags_override():
    assert get_config(["--task=digits"]).batch_size == TASKS["digits"]["batch_size"]
    assert get_config(["--batch_size=7", "--task=digits"]).batch_size == 7


def test_run_names_are_the_original_ones():
    assert Config().name == "ram_6_8x8_1"
    assert Config(task="digits", num_glimpses=4).name == "digits_ram_4_8x8_1"
    assert Config(run_name="mine").name == "mine"


@pytest.mark.parametrize(
    "field, value",
    [("patch_size", 0), ("glimpse_scale", 0), ("num_patches", -1), ("num_glimpses", 0), ("M", 0), ("std", 0.0),
     ("std", float("nan")), ("std", float("inf")), ("valid_size", 0.0), ("valid_size", 1.0), ("momentum", 1.0),
     ("ema_decay", 1.0), ("std_share", 0.0), ("std_share", 1.1),
     ("init_lr", -1e-3), ("reinforce_weight", -0.1), ("lr_patience", -1), ("train_patience", -1), ("epochs", 0),
     ("random_seed", -1), ("task", "imagenet"), ("epochs", 2.5), ("resume", 1), ("run_name", "a/b"),
     ("run_name", ".."), ("batch_size", 2**31), ("canvas_size", 10**20)],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_named(field, value):
    with pytest.raises(InputError, match=rf"{field}={re.escape(str(value))} is not allowed: it must be"):
        Config(**{field: value})


def test_patches_that_are_wider_than_any_image_are_refused():
    with pytest.raises(InputError, match="num_patches=70 is not allowed: it must be fewer"):
        Config(num_patches=70, glimpse_scale=2)


def test_a_typo_is_an_error_with_a_suggestion(capsys):
    with pytest.raises(SystemExit) as stop:
        get_config(["--pach_size=8"])
    assert stop.value.code != 0
    assert "--patch_size" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--patch_size=8.5", "--std=wide", "--resume=yes", "--task", "--epochs="])
def test_a_value_that_does_not_parse_is_an_error(flag, capsys):
    with pytest.raises(SystemExit) as stop:
        get_config([flag])
    assert stop.value.code != 0
    assert flag.split("=")[0] in capsys.readouterr().err


def test_a_task_that_does_not_exist_names_those_that_do():
    with pytest.raises(InputError, match=r"task=imagenet is not allowed: it must be one of \['mnist', .*'folder'\]$"):
        get_config(["--task=imagenet"])


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().std = 1.0


def test_free_fields_exist():
    assert set(FREE_ON_RESUME) | set(FREE_ON_TEST) <= {field.name for field in dataclasses.fields(Config)}


def test_parsing_flags_does_not_import_torch():
    code = "import sys, main; main.get_config(['--std=0.1']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
