"""README and docs say what is true."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from benchmarks.onnx_speed import OnnxSpeed
from benchmarks.scaling import Scaling
from benchmarks.throughput import Benchmark
from benchmarks.time_to_accuracy import TimeToAccuracy
from config import make_config
from plot_glimpses import PlotConfig
from search.options import SearchConfig
from tools.drawn_digits import DrawnDigits
from tools.export import Export
from tools.results_tables import (
    PAGES,
    TablesConfig,
    best_of_each_model,
    recipes,
    results_table,
    summary_table,
    with_table,
    with_tables,
)
from tools.results_tables import main as write_tables
from training.cli import InputError
from viz.page import PageConfig

DOCS = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
EVERY_PAGE = {**DOCS, **{path: path.read_text() for path in ROOT.glob("[br]e*/README.md")}}


def test_the_tables_are_what_the_recorded_runs_say():
    assert len(list((ROOT / "results").glob("*.json"))) > 0
    pages = {page: (ROOT / page).read_text() for page in PAGES}
    assert with_tables(pages, ROOT / "results") == pages


def test_the_recipes_are_what_the_recorded_runs_had():
    for name, text in recipes(ROOT / "results").items():
        assert (ROOT / "recipes" / f"{name}.toml").read_text() == text


def test_a_stranger_can_read_the_readme():
    assert len(DOCS[ROOT / "README.md"].splitlines()) <= 150


def test_a_line_is_of_runs_that_differ_in_their_seed_alone(tmp_path):
    lines = [(1, 0.1, 99.0), (2, 0.1, 97.0), (3, 0.2, 90.0)]
    for seed, std, acc in lines:
        settings = make_config(random_seed=seed, std=std, run_name=f"{seed}").flat()
        record = {"config": settings, "best_valid_acc": acc, "seconds_per_epoch": [60.0], "valid_acc_per_epoch": [acc],
                  "tests": {"M=1": {"acc": acc - 0.5}}}  # fmt: skip
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
    table = results_table(tmp_path)
    assert "| mnist | 6 | - | 2 | 30 | 1.0 | 2.00 ± 1.41 | **2.50 ± 1.41** | - | - |" in table
    other = "| mnist | 6 | `--std=0.2` | 1 | 30 | 1.0 | 10.00 | **10.50** | - | - |"
    assert other in table
    best = results_table(tmp_path, best_of_each_model)
    assert "| mnist | 6 | - | 2 | 30 |" in best and other not in best
    (tmp_path / "3.json").write_text(json.dumps({**record, "config": {**settings, "core": "lstm"}}))
    assert "| mnist | 6 | `--core=lstm --std=0.2" in results_table(tmp_path, best_of_each_model)


def test_runs_on_all_images_stand_beside_those_of_the_same_settings(tmp_path):
    for valid_size, epochs, std, acc in [
        (0.1, 30, 0.1, 98.0),
        (0.1, 40, 0.1, 97.0),
        (0, 30, 0.1, 99.0),
        (0, 40, 0.2, 96.0),
    ]:
        settings = make_config(valid_size=valid_size, epochs=epochs, std=std).flat()
        record = {"config": settings, "best_valid_acc": acc if valid_size else 0.0, "seconds_per_epoch": [60.0],
                  "tests": {"M=1": {"acc": acc}}}  # fmt: skip
        (tmp_path / f"{valid_size}_{epochs}.json").write_text(json.dumps(record))
    lines = [line for line in results_table(tmp_path).splitlines() if line.startswith("| mnist | 6 | - |")][:2]
    assert [line.split(" | ")[4:10] for line in lines] == [
        ["30", "1.0", "2.00", "**2.00**", "-", "1.00"],
        ["40", "1.0", "3.00", "**3.00**", "-", "-"],
    ]
    assert "[2.00](recipes/mnist_best.toml)" in summary_table(tmp_path)  # not one of those on all images


@pytest.mark.parametrize(
    ("errors", "model", "cells"),
    [
        ((1.2, 1.0), {}, "[1.20](FILE) (1.12) | 1.20 in 5 min"),
        ((1.1, 1.0), {}, "**[1.10](FILE)** (1.12) | 1.10 in 5 min"),
        ((1.1, 1.0), {"core": "lstm", "first_location": "centre"}, "**[1.10](FILE)**<sup>cl</sup> (1.12) | -"),
    ],
)
def test_the_summary_shows_the_lowest_validation_error_not_the_lowest_on_test(tmp_path, errors, model, cells):
    for std, valid, test in zip((0.1, 0.2), (2.0, 3.0), errors, strict=True):  # 0.1 is the task's own
        settings = make_config(std=std, **model).flat()
        tests = {"M=1": {"acc": 100 - test}}
        record = {"config": settings, "best_valid_acc": 100 - valid, "tests": tests, "seconds_per_epoch": [100, 200]}
        (tmp_path / f"{std}.json").write_text(json.dumps(record))
    head, _, line = summary_table(tmp_path).splitlines()
    assert head == "| glimpses | 6 | `--task=TASK` alone | `--recipe=TASK_best` |"
    assert line == f"| mnist | {cells.replace('FILE', 'recipes/mnist_best.toml')} | 5 min |"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_links_to_exist(page):
    for path in re.findall(r"\]\((?!http)([^)#]+)", EVERY_PAGE[page]):
        assert (page.parent / path).exists(), path


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_a_page_names_exist(page):
    flags = set(re.findall(r"--([a-zA-Z_]+)=", DOCS[page]))
    settings = {field.name for cls in (PlotConfig, SearchConfig) for field in dataclasses.fields(cls)}
    others = (Export, Benchmark, TimeToAccuracy, Scaling, OnnxSpeed, DrawnDigits, PageConfig)
    tools = {field.name for cls in others for field in dataclasses.fields(cls)}
    elsewhere = {"logdir", "nproc_per_node"}  # tensorboard, torchrun
    assert flags <= make_config().flat().keys() | settings | tools | elsewhere


def test_the_tests_that_the_pages_name_exist():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = {name for text in DOCS.values() for name in re.findall(r"`(test_\w+)`", text)}
    assert len(named) > 10
    assert [name for name in named if f"def {name}(" not in tests] == []


def example(page: str = "docs/pictures.md") -> str:
    """The first block of Python in a page."""
    return re.search(r"```python\n(.*?)```", DOCS[ROOT / page], flags=re.DOTALL)[1]


def say(folder: Path, page: str = "docs/pictures.md") -> str:
    """What the example of a page prints in this folder, where that of pictures.md finds models/mnist.pt."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example(page)}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_example_in_python_works_as_written(run, tmp_path):
    """With a model of the size of the shipped one, if not its skill."""
    config = run("--epochs=1", "--num_glimpses=6", "--hidden_size=256")
    (tmp_path / "models").mkdir()
    shutil.copy(config.run_dir / "best.pt", tmp_path / "models" / "mnist.pt")
    answer = re.fullmatch(r"\[(.*)\] torch.Size\(\[9, 6, 2\]\)\n", say(tmp_path))
    assert {int(digit) for digit in answer[1].split(", ")} <= set(range(10))
    assert len(example().strip().splitlines()) <= 10


def test_the_training_in_python_works_as_written(tmp_path):
    said = say(tmp_path, "docs/extending.md")
    accuracies = [float(line.split()[1]) for line in said.splitlines() if re.match(r"[12] [\d.]+$", line)]
    assert len(accuracies) == 2 and accuracies[1] > 30  # a tenth by guessing
    assert (tmp_path / "ckpt" / "from_python" / "best.pt").exists()


@pytest.mark.skipif(not (ROOT / "models" / "mnist.pt").exists(), reason="models/mnist.pt is not there")
def test_the_example_in_python_reads_digits_with_the_shipped_model():
    answers = re.search(r"\[(.*?)\]", say(ROOT))[1].split(", ")
    assert sum(int(answer) == digit for digit, answer in enumerate(answers)) >= 5  # they are 0 to 8; MNIST's are others


def test_every_tag_it_names_is_logged_and_every_logged_one_is_named(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(run("--epochs=1", "--use_tensorboard=True").run_logs)).Reload().Tags()
    logged = {*tags["scalars"], *tags["images"], *tags["histograms"]}
    named = DOCS[ROOT / "docs/tensorboard.md"]
    words = set(re.findall(r"`([\w/]+)`", named)) - {"plot_freq"}
    parts = {f"{word}{part}" for word in words for part in ("", "/train", "/valid")}
    assert all(re.sub(r"glimpse_\d", "glimpse_1", tag) in parts for tag in logged)
    assert all(
        any(tag in (word, f"{word}/train", f"{word}/valid") for tag in logged) for word in words if word[0] != "/"
    )


def test_a_folder_without_records_and_a_damaged_record_change_no_page(tmp_path):
    with pytest.raises(InputError, match="holds no records"):
        write_tables(TablesConfig(str(tmp_path)))
    for text in ("{}", '{"tests'):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(InputError, match="is no record of a run"):
            write_tables(TablesConfig(str(tmp_path)))
    with pytest.raises(ValueError, match="lacks the marks of its table"):
        with_table("no marks", "summary", "| a |")
