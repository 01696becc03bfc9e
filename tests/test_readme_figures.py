"""The pictures of README and docs: drawn from the shipped model, else from the run; a task without either is named."""

import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT
from PIL import Image

from tools import readme_figures
from tools.readme_figures import ReadmeFigures, find_model
from training.cli import InputError


@pytest.fixture
def args(tmp_path, monkeypatch) -> ReadmeFigures:
    """The pictures of the bundled digits alone."""
    for name in ("PICTURED", "ANIMATED", "SUMMARISED"):
        monkeypatch.setattr(readme_figures, name, ("digits",))
    monkeypatch.setattr(readme_figures, "PLAYED", ())
    folders = {name: str(tmp_path / name) for name in ("models_dir", "ckpt_dir", "out_dir")}
    return ReadmeFigures(data_dir=str(tmp_path), **folders)


def test_a_task_without_a_model_is_named_and_the_rest_is_drawn(args):
    with pytest.raises(InputError, match=r"no model for digits.*python main.py --task=digits"):
        readme_figures.main(args)
    assert [path.name for path in Path(args.out_dir).iterdir()] == ["tasks.png"]


def test_a_shipped_model_comes_before_a_run_and_each_is_drawn(args, run):
    trained = run("--epochs=1", "--run_name=digits_ram_6_8x8_1")
    assert find_model("digits", args) == trained.run_dir / "best.pt"
    readme_figures.main(args)
    out = Path(args.out_dir)
    assert Image.open(out / "digits.gif").n_frames == 3
    assert all(Image.open(out / f"digits_{name}.png").width > 500 for name in ("heat_maps", "accuracy"))
    Path(args.models_dir).mkdir()
    shutil.copy(trained.run_dir / "best.pt", Path(args.models_dir) / "digits.pt")
    assert find_model("digits", args) == Path(args.models_dir) / "digits.pt"


def test_every_picture_of_the_pages_is_one_that_is_drawn():
    drawn = {"tasks.png"} | {f"{task}.gif" for task in readme_figures.ANIMATED}
    drawn |= {f"{task}_{name}.png" for task in readme_figures.SUMMARISED for name in ("heat_maps", "accuracy")}
    drawn |= {name for task in readme_figures.PLAYED for name in (f"{task}.gif", f"{task}_gaze.png")}
    assets = ROOT / "assets"
    assert drawn == {path.name for path in assets.iterdir()}
    pages = "".join(page.read_text() for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    assert drawn == set(re.findall(r"\((?:\.\./)?assets/([\w.]+)\)", pages))
    assert all(path.stat().st_size < 1.5e6 for path in assets.iterdir())
