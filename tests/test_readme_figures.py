"""The README's pictures: drawn from the shipped model, else from the run, and where there is neither that is said."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import gallery
from config import InputError
from gallery import GalleryConfig, find_model

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def config(tmp_path, monkeypatch) -> GalleryConfig:
    """A gallery of the bundled digits."""
    for name, tasks in {"PICTURED": ("digits", "digits"), "ANIMATED": ("digits",), "AVERAGED": ("digits",)}.items():
        monkeypatch.setattr(gallery, name, tasks)
    folders = {name: str(tmp_path / name) for name in ("models_dir", "ckpt_dir", "out_dir")}
    return GalleryConfig(data_dir=str(tmp_path), **folders)


def test_a_task_without_a_model_is_named_and_the_rest_is_drawn(config):
    with pytest.raises(InputError, match=r"no model for digits.*python main.py --task=digits"):
        gallery.main(config)
    assert [path.name for path in Path(config.out_dir).iterdir()] == ["tasks.png"]


def test_a_shipped_model_comes_before_a_run_and_each_is_drawn(config, run):
    trained = run("--epochs=1", "--num_glimpses=6")
    assert find_model("digits", config) == trained.run_dir / "best.pt"
    gallery.main(config)
    out = Path(config.out_dir)
    assert Image.open(out / "digits.gif").n_frames == 6
    assert all(Image.open(out / f"digits_{name}.png").width > 500 for name in ("heat_maps", "accuracy"))
    Path(config.models_dir).mkdir()
    shutil.copy(trained.run_dir / "best.pt", Path(config.models_dir) / "digits.pt")
    assert find_model("digits", config) == Path(config.models_dir) / "digits.pt"


def test_every_picture_of_the_readme_is_one_that_the_gallery_draws():
    drawn = {"tasks.png"} | {f"{task}.gif" for task in gallery.ANIMATED}
    drawn |= {f"{task}_{name}.png" for task in gallery.AVERAGED for name in ("heat_maps", "accuracy")}
    assets = Path(gallery.__file__).parent / "assets"
    assert drawn == {path.name for path in assets.iterdir()}
    assert all(f"(assets/{name})" in README for name in drawn)
    assert all(path.stat().st_size < 1.5e6 for path in assets.iterdir())
