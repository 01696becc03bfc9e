"""The README says what is true."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from sweep_config import SweepConfig
from tables import best_of_each_model, results_table, summary_table, with_tables

from config import Config
from plot_glimpses import PlotConfig

README = (ROOT / "README.md").read_text()
REPORT = (ROOT / "results" / "README.md").read_text()


def test_the_tables_are_what_the_recorded_runs_say():
    assert len(list((ROOT / "results").glob("*.json"))) > 0
    assert with_tables(README, REPORT, ROOT / "results") == (README, REPORT)


def test_a_line_is_of_runs_that_differ_in_their_seed_alone(tmp_path):
    lines = [(1, 0.1, 99.0), (2, 0.1, 97.0), (3, 0.2, 90.0)]
    for seed, std, acc in lines:
        settings = dataclasses.asdict(Config(random_seed=seed, std=std, run_name=f"{seed}"))
        record = {"config": settings, "best_valid_acc": acc, "seconds_per_epoch": [60.0], "valid_acc_per_epoch": [acc],
                  "tests": {"M=1": {"acc": acc - 0.5}}}  # fmt: skip
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
    table = results_table(tmp_path)
    assert "| mnist | 6 | - | 2 | 30 | 1.0 | 2.00 ± 1.41 | **2.50 ± 1.41** | - |" in table
    other = "| mnist | 6 | `--std=0.2` | 1 | 30 | 1.0 | 10.00 | **10.50** | - |"
    assert other in table
    best = results_table(tmp_path, best_of_each_model)
    assert "| mnist | 6 | - | 2 | 30 |" in best and other not in best
    del settings["ema_decay"]  # of a run before there was a choice
    (tmp_path / "3.json").write_text(json.dumps({**record, "config": settings}))
    assert "| mnist | 6 | `--std=0.2 --ema_decay=0` | 1 |" in results_table(tmp_path)
    (tmp_path / "3.json").write_text(json.dumps({**record, "config": {**settings, "core": "lstm"}}))
    assert "| mnist | 6 | `--core=lstm --std=0.2" in results_table(tmp_path, best_of_each_model)


@pytest.mark.parametrize(
    ("errors", "model", "cell"),
    [
        ((1.2, 1.0), {}, "1.20 (1.12)"),
        ((1.1, 1.0), {}, "**1.10** (1.12)"),
        ((1.1, 1.0), {"core": "lstm", "first_location": "centre"}, "**1.10**<sup>cl</sup> (1.12)"),
    ],
)
def test_the_summary_tells_of_the_lowest_validation_error_not_of_the_lowest_on_test(tmp_path, errors, model, cell):
    for std, valid, test in zip((0.1, 0.2), (2.0, 3.0), errors, strict=True):
        settings = dataclasses.asdict(Config(std=std, **model))
        record = {"config": settings, "best_valid_acc": 100 - valid, "tests": {"M=1": {"acc": 100 - test}}}
        (tmp_path / f"{std}.json").write_text(json.dumps(record))
    assert summary_table(tmp_path).splitlines() == ["| glimpses | 6 |", "| --- | --- |", f"| mnist | {cell} |"]


def test_files_and_flags_it_names_exist():
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    flags = set(re.findall(r"--([a-zA-Z_]+)=", README))
    settings = (Config, PlotConfig, SweepConfig)
    elsewhere = {"logdir", "nproc_per_node"}  # tensorboard, torchrun
    assert flags <= {field.name for cls in settings for field in dataclasses.fields(cls)} | elsewhere


def test_the_tests_it_names_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", README))
    assert len(named) > 10
    assert all(f"def {name}(" in tests for name in named)


def example() -> str:
    """The README's only block of Python."""
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    return block


def say(folder: Path) -> str:
    """What the example prints where folder/models/mnist.pt is."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example()}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_example_in_python_works_as_written(run, tmp_path):
    """With a model of the size of the shipped one, if not its skill."""
    config = run("--epochs=1", "--num_glimpses=6", "--hidden_size=256")
    (tmp_path / "models").mkdir()
    shutil.copy(config.run_dir / "best.pt", tmp_path / "models" / "mnist.pt")
    answer = re.fullmatch(r"\[(.*)\] torch.Size\(\[9, 6, 2\]\)\n", say(tmp_path))
    assert {int(digit) for digit in answer[1].split(", ")} <= set(range(10))
    assert len(example().strip().splitlines()) <= 10


@pytest.mark.skipif(not (ROOT / "models" / "mnist.pt").exists(), reason="models/mnist.pt is not there")
def test_the_example_in_python_reads_digits_with_the_shipped_model():
    answers = re.search(r"\[(.*?)\]", say(ROOT))[1].split(", ")
    assert sum(int(answer) == digit for digit, answer in enumerate(answers)) >= 5  # they are 0 to 8; MNIST's are others


def test_every_tag_it_names_is_logged_and_every_logged_one_is_named(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(run("--epochs=1", "--use_tensorboard=True").run_logs)).Reload().Tags()
    logged = {*tags["scalars"], *tags["images"], *tags["histograms"]}
    named = README.partition("### In TensorBoard")[2].partition("\n## ")[0]
    words = set(re.findall(r"`([\w/]+)`", named)) - {"plot_freq"}
    parts = {f"{word}{part}" for word in words for part in ("", "/train", "/valid")}
    assert all(re.sub(r"glimpse_\d", "glimpse_1", tag) in parts for tag in logged)
    assert all(
        any(tag in (word, f"{word}/train", f"{word}/valid") for tag in logged) for word in words if word[0] != "/"
    )
