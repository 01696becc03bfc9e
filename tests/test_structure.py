"""The house: which file may import which, a model that needs torch alone, the files that one step passes through."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import CPU, ROOT, loaders_of

from config import make_config
from trainer import Trainer
from utils import Stream, make_generator

# From low to high: a file imports only what stands in a lower line.
ORDER = [
    [
        "utils",
        "modules",
        "images.canvas",
        "games.catch",
        "training.cli",
        "training.fuse_matmuls",
        "training.captured_step",
    ],
    ["config"],
    ["model"],
    ["training.distributed", "training.checkpoint", "training.fixed_policies"],
    ["games.player", "images.listing", "images.folder"],
    ["images.datasets", "images.one_image"],
    ["images.split", "images.batches"],
    ["games.batches"],
    ["data_loader"],
    ["training.optim", "training.step", "training.evaluation", "training.run_folder"],
    ["training.progress"],
    ["trainer"],
    ["viz.record"],
    ["viz.files", "viz.own_images"],
    ["viz.figures"],
    ["viz.tensorboard", "viz.test_set", "viz.games"],
    ["viz.page_catch"],
    ["viz.page"],
    ["viz.reports"],
    ["search.options"],
    ["search.storage"],
    ["search.worker"],
    ["search.report"],
    ["benchmarks.floor", "tools.published", "tools.records"],
    ["main", "plot_glimpses", "search.__main__"],
    ["tools.export", "tools.results_tables", "tools.drawn_digits", "tools.readme_figures"],
    ["benchmarks.throughput", "benchmarks.scaling", "benchmarks.startup"],
    ["benchmarks.time_to_accuracy"],
    ["benchmarks.catch", "benchmarks.onnx_speed", "benchmarks.page_speed"],
]
HALL = {"main", "plot_glimpses", "trainer", "model", "modules", "data_loader", "config", "utils"}
ROOMS = ("images", "games", "training", "viz", "search", "tools", "benchmarks")


def files() -> dict[str, Path]:
    """Every Python file outside the tests, by its module's name."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).glob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def level(module: str) -> int:
    [found] = [i for i, names in enumerate(ORDER) if module in names]
    return found


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_eight_files_stand_in_the_hall():
    """Of those that are committed: a user's own script may stand beside them."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() or [path.name for path in ROOT.glob("*.py")]  # no git, or no checkout
    assert {name.removesuffix(".py") for name in names if "/" not in name} == HALL


@pytest.mark.parametrize("module", [name for name in files() if not name.endswith("__init__")])
def test_a_file_imports_only_what_stands_below_it(module):
    ours = imports(files()[module]) & files().keys()
    assert [name for name in sorted(ours) if level(name) >= level(module)] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_folders_map_has_a_line_for_each_file_and_imports_nothing(room):
    tree = ast.parse((ROOT / room / "__init__.py").read_text())
    names = re.findall(r"^ *(\w+)  +\S", ast.get_docstring(tree), re.MULTILINE)
    assert sorted(names) == sorted(path.stem for path in (ROOT / room).glob("*.py") if path.name != "__init__.py")
    assert len(tree.body) == 1


def test_only_files_that_draw_import_matplotlib():
    """Optuna draws the report of a search, and a benchmark its own plot."""
    found = {name for name, path in files().items() if any(each.startswith("matplotlib") for each in imports(path))}
    assert found == {"viz.figures", "viz.files", "viz.games", "viz.test_set", "search.report", "benchmarks.scaling"}


def test_the_model_needs_torch_alone(tmp_path):
    """Two files, copied elsewhere, are the model."""
    for name in ("model.py", "modules.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    code = "import model, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"torch", "model", "modules"} <= loaded
    assert not {"tyro", "filelock", "torchvision", "matplotlib", "config", "training", "utils"} & loaded


def test_a_step_passes_through_five_files(tmp_path):
    """From the batch to the moved weights and their average."""
    trainer = Trainer(config := make_config(task="digits", ckpt_dir=str(tmp_path)), loaders_of(config), CPU)
    batch = next(iter(trainer.train_loader))
    generator = make_generator(Stream.ROLLOUT, seed=1)
    passed = set()
    sys.setprofile(lambda frame, event, argument: passed.add(frame.f_code.co_filename))
    try:
        trainer.train_step(batch, generator, steps=1)
    finally:
        sys.setprofile(None)
    ours = {str(path): name for name, path in files().items()}
    expected = {"trainer", "training.step", "model", "modules", "training.optim"}
    assert {ours[path] for path in passed if path in ours} == expected
