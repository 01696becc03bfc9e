"""Flags become a Config, or one clear line."""

import ast
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from helpers import ROOT, command

from config import (
    GROUPS,
    TASKS,
    CallConfig,
    Config,
    DataConfig,
    MachineConfig,
    Mark,
    ModelConfig,
    config_of,
    get_config,
    make_config,
    names_marked,
    names_of,
)
from model import RecurrentAttention
from tools.records import changed, read_records
from training.cli import InputError

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
    assert make_config().flat().keys() >= ORIGINAL_FLAGS


def test_help_shows_every_setting_in_its_group(capsys):
    with pytest.raises(SystemExit) as stop:
        get_config(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    groups = [f"{name} options" for name in GROUPS]
    places = [shown.index(title) for title in groups]
    assert places == sorted(places)
    for (name, group), begin, end in zip(GROUPS.items(), places, [*places[1:], len(shown)], strict=True):
        for field in dataclasses.fields(group):
            assert f"--{field.name} " in shown[begin:end], (name, field.name)


def test_every_setting_is_read_somewhere():
    """A flag whose value changes nothing is an error to ship. The model's arguments are read as a whole."""
    files = [path for path in ROOT.glob("**/*.py") if "tests" not in path.parts and ".venv" not in str(path)]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    arguments = set(inspect.signature(RecurrentAttention).parameters)
    assert set(make_config().flat()) - read - arguments == set()
    assert set(names_of(ModelConfig)) | {"num_channels", "num_classes"} == arguments


def test_tasks_and_their_choices_agree():
    assert set(TASKS) == set(get_args(get_type_hints(DataConfig)["task"]))


def test_a_task_sets_defaults_that_flags_override():
    assert get_config(["--task=digits"]).data.batch_size == TASKS["digits"]["batch_size"]
    assert get_config(["--batch_size=7", "--task=digits"]).data.batch_size == 7


def test_run_names_are_the_original_ones():
    assert make_config().name == "ram_6_8x8_1"
    assert make_config(task="digits", num_glimpses=4).name == "digits_ram_4_8x8_1"
    assert make_config(run_name="mine").name == "mine"


@pytest.mark.parametrize(
    "field, value",
    [("patch_size", 0), ("glimpse_scale", 0), ("num_patches", -1), ("num_glimpses", 0), ("M", 0), ("std", 0.0),
     ("std", float("nan")), ("std", float("inf")), ("valid_size", -0.1), ("valid_size", 1.0), ("momentum", 1.0),
     ("ema_decay", 1.0), ("std_share", 0.0), ("std_share", 1.1),
     ("init_lr", -1e-3), ("reinforce_weight", -0.1), ("lr_patience", -1), ("train_patience", -1), ("epochs", 0),
     ("random_seed", -1), ("task", "imagenet"), ("epochs", 2.5), ("resume", 1), ("run_name", "a/b"),
     ("run_name", ".."), ("batch_size", 2**31), ("canvas_size", 10**20)],
)  # fmt: skip
def test_a_value_that_is_not_allowed_is_named(field, value):
    with pytest.raises(InputError, match=rf"{field}={re.escape(str(value))} is not allowed: it must be"):
        make_config(**{field: value})


@pytest.mark.parametrize("needs_validation", [{"lr_patience": 3}, {"task": "catch"}])
def test_what_looks_at_the_validation_needs_some(needs_validation):
    with pytest.raises(InputError, match=r"valid_size=0.0 is not allowed: it must be above 0 with --lr_patience="):
        make_config(valid_size=0.0, **needs_validation)


def test_patches_that_are_wider_than_any_image_are_rejected():
    with pytest.raises(InputError, match="num_patches=70 is not allowed: it must be fewer"):
        make_config(num_patches=70, glimpse_scale=2)


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
    with pytest.raises(InputError, match=r"task=imagenet is not allowed: it must be one of \['mnist', .*\]$"):
        get_config(["--task=imagenet"])


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config().model.std = 1.0


def test_what_may_change_follows_from_groups_and_marks():
    """As the original's users expect: a resumed run keeps its model and data, and may continue longer elsewhere."""
    resumed, tested, shared = (set(names_marked(mark)) for mark in (Mark.RESUME, Mark.TEST, Mark.SHARED))
    free = {*names_of(CallConfig, MachineConfig), "M", "data_dir", "num_workers"}
    assert resumed == free | {"epochs", "train_patience", "clip_grad_norm"}
    assert tested == free | {"batch_size", "image_height", "image_width"}
    assert shared == free | {"random_seed"} | set(names_of(DataConfig)) - {"batch_size"}


def test_settings_are_flat_in_files_and_come_back_as_they_were():
    config = make_config(task="cluttered60", lr_patience=3, run_name="mine")
    assert make_config(**json.loads(json.dumps(config.flat()))) == config
    assert config.replace(std=0.3).model.std == 0.3 and config.model.std == 0.1
    assert type(make_config(weight_decay=0).training.weight_decay) is float
    with pytest.raises(InputError, match="there is no setting stdd"):
        config.replace(stdd=0.3)


def test_a_setting_that_came_after_a_run_does_as_before_whatever_its_task_sets_today(monkeypatch, tmp_path):
    old = {name: value for name, value in make_config(task="cluttered60").flat().items() if name != "reinforce_core"}
    monkeypatch.setitem(TASKS["cluttered60"], "reinforce_core", True)
    assert make_config(**old).model.reinforce_core and not config_of(old, "params.json").model.reinforce_core
    (tmp_path / "old.json").write_text(json.dumps({"config": old}))
    [[record]] = read_records(tmp_path).values()
    assert changed(record["config"], set()) == {"reinforce_core": False}


def recipe(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return f"--recipe={folder / 'mine.toml'}"


def test_a_recipe_sets_defaults_that_flags_override_and_names_the_run(tmp_path):
    flag = recipe(tmp_path, 'task = "cluttered60"\nepochs = 7\nstd = 0.05\nweight_decay = 0')
    config = get_config([flag, "--std=0.2"])
    assert (config.data.task, config.model.num_glimpses, config.training.epochs) == ("cluttered60", 8, 7)
    assert (config.model.std, config.training.weight_decay, config.name) == (0.2, 0.0, "mine")
    assert get_config([flag, "--run_name=other"]).name == "other"
    assert get_config([flag, "--task=mnist"]).data.canvas_size == 0


def test_every_recipe_is_read_and_differs_from_its_task():
    names = [path.stem for path in (ROOT / "recipes").glob("*.toml")]
    assert {"original", "paper", "cluttered60_best"} <= set(names)
    for name in names:
        config = get_config([f"--recipe={name}"])
        assert config.name == name


@pytest.mark.parametrize(
    ("text", "why"),
    [("epochs = ", "cannot be read as TOML"), ("std = 0", "std=0.0 is not"), ("task = [1]", "correct it"),
     ("epoch = 3", "there is no setting epoch: python main.py --help lists them all): correct it"),
     ("resume = true", "sets resume, which belongs to a single call")],
)  # fmt: skip
def test_a_recipe_that_is_wrong_is_named_in_one_line(tmp_path, text, why):
    with pytest.raises(InputError, match=rf"mine\.toml .*{re.escape(why)}") as error:
        get_config([recipe(tmp_path, text)])
    assert "\n" not in str(error.value)


def test_a_recipe_with_a_byte_order_mark_is_read_under_any_locale(tmp_path):
    """Windows' editors write the mark; a machine without a language reads text as ASCII."""
    (tmp_path / "mine.toml").write_bytes('\ufefftask = "digits"  # größer\n'.encode())
    code = f"import config; print(config.get_config(['--recipe={tmp_path / 'mine.toml'}']).data.task)"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = command("-c", code, env={**os.environ, **ascii_only})
    assert done.stdout == "digits\n", done.stderr


def test_a_recipe_that_does_not_exist_names_those_that_do():
    with pytest.raises(InputError, match=r"recipe=best is not a file: .*cluttered60_best.*original"):
        get_config(["--recipe=best"])


@pytest.mark.parametrize("flags", [["--checkpoint=a.pt"], ["--checkpoint=a.pt", "--is_train=False", "--best=False"]])
def test_flags_that_contradict_a_checkpoint_are_rejected(flags):
    with pytest.raises(InputError, match=r"is not allowed: it must be (given with --is_train=False|left out with)"):
        get_config(flags)


def test_changes_are_accepted_by_a_resume_alone():
    with pytest.raises(InputError, match="accept_changes=True is not allowed: it must be given with --resume=True"):
        make_config(accept_changes=True)
    assert make_config(accept_changes=True, resume=True).call.accept_changes


@pytest.mark.parametrize("task", ["cluttered60", "translated60", "fashion", "digits", "folder"])
def test_a_config_made_by_hand_is_not_named_after_a_task_that_it_does_not_do(task):
    with pytest.raises(InputError, match=rf"task={task} is not allowed: .*make_config sets what a task does"):
        Config(data=DataConfig(task=task))
    assert make_config(task=task).data.task == task
    mixed = make_config(task="translated60", dataset="fashion")  # the images are free where a task names none
    assert Config(data=mixed.data) and Config(data=DataConfig(dataset="digits"))


def test_parsing_flags_does_not_import_torch():
    code = "import sys, main; main.get_config(['--std=0.1']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
