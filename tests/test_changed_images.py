"""Images that change between a training and its resumption: said, not accepted unasked, and none changes sides."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CPU, contents, loaders_of, write_idx
from helpers import train as train_with
from PIL import Image

from config import Config, get_config, make_config
from images.batches import Loader
from main import main
from training.checkpoint import load_checkpoint
from training.cli import InputError
from utils import Stream, make_generator


def noise(path: Path, seed: int):
    """An image that is unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 training images of each of two classes."""
    for k, name in enumerate("ab"):
        for i in range(40):
            noise(tmp_path / "images" / "train" / name / f"{i:02}.png", 100 * k + i)
        noise(tmp_path / "images" / "test" / name / "1.png", 1000 + k)
    return tmp_path / "images"


@pytest.fixture
def flags(folder, tmp_path) -> list[str]:
    places = [f"--{name}={tmp_path / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    return ["--task=folder", f"--data_dir={folder}", "--num_workers=0", "--use_gpu=False", "--batch_size=16",
            "--hidden_size=8", "--num_glimpses=2", "--patch_size=4", *places]  # fmt: skip


@pytest.fixture
def trained(flags) -> Config:
    """A run of one epoch."""
    config = get_config([*flags, "--epochs=1"])
    main(config)
    return config


def pixels(loader: Loader) -> set[bytes]:
    return set(map(bytes, loader.examples.images.flatten(1).numpy()))


def resumed(flags: list[str], trained: Config, *more: str) -> tuple[Loader, Loader]:
    checkpoint = load_checkpoint(trained.run_dir / "last.pt", to_resume=True)
    return loaders_of(get_config([*flags, "--resume=True", *more]), CPU, checkpoint)


def some(folder: Path, trained: Config, validates: bool) -> Path:
    """One image of train/a that validated the run, or one that it was trained on."""
    names = load_checkpoint(trained.run_dir / "last.pt")["images"]["validation"]
    return next(path for path in sorted((folder / "train" / "a").iterdir())
                if (f"train/a/{path.name}" in names) is validates)  # fmt: skip


CHANGES = {
    "removed": (lambda path: path.unlink(), r"train/a has 39 images, not 40"),
    "added": (lambda path: noise(path.with_name("new.png"), 5), r"train/a has 41 images, not 40"),
    "renamed": (lambda path: path.rename(path.with_name("other.png")), r"as many as before, but some are renamed"),
    "replaced": (lambda path: Image.new("L", (8, 8)).save(path), r"as many as before, but some are .* replaced"),
    "moved": (lambda path: path.rename(path.parents[1] / "b" / "moved.png"), r"a has 39 images, not 40, \S+/b has 41"),
    "val": (lambda path: noise(path.parents[2] / "val" / "a" / "1.png", 5), r"val/a has 1 images, not 0"),
}


@pytest.mark.parametrize("validates", [True, False], ids=["validation", "training"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_not_resumed_unasked(folder, flags, trained, change, validates):
    before, written = loaders_of(trained), contents(trained.run_dir)
    trained_on, validated = map(pixels, before)
    apply, message = CHANGES[change]
    apply(some(folder, trained, validates))
    with pytest.raises(InputError, match=rf"{message}.*--run_name=, or continue with --accept_changes=True") as error:
        main(get_config([*flags, "--resume=True", "--epochs=2"]))
    assert "\n" not in str(error.value)
    assert contents(trained.run_dir) == written
    now = resumed(flags, trained, "--accept_changes=True")
    assert not pixels(now[1]) & trained_on  # what was trained on validates nothing
    assert len(pixels(now[1]) & validated) >= len(validated) - validates
    assert len(pixels(now[1]) - validated) == (change == "replaced" and validates)  # under the name of one that did
    assert now[0].num_images + now[1].num_images == 80 + (change in ("added", "val")) - (change == "removed")


def test_accepted_changes_are_the_runs_images_from_then_on(folder, flags, trained, capsys):
    noise(folder / "train" / "a" / "new.png", 5)
    main(get_config([*flags, "--resume=True", "--accept_changes=True", "--epochs=2"]))
    assert "[!] The images in " in capsys.readouterr().out
    main(get_config([*flags, "--resume=True", "--epochs=3"]))
    assert "[!]" not in capsys.readouterr().out
    assert load_checkpoint(trained.run_dir / "last.pt")["images"]["counts"]["train/a"] == 41


def test_a_run_with_accepted_changes_is_resumed_again_however_other_the_images_look(folder, flags, trained):
    """The model keeps the mean and std of the images it began with."""
    spec = load_checkpoint(trained.run_dir / "last.pt")["data"]
    for k in range(40):
        Image.new("L", (8, 8), 255 - k).save(folder / "train" / "a" / f"white_{k}.png")
    main(get_config([*flags, "--resume=True", "--accept_changes=True", "--epochs=2"]))
    main(get_config([*flags, "--resume=True", "--epochs=3"]))
    checkpoint = load_checkpoint(trained.run_dir / "last.pt")
    assert (checkpoint["epoch"], checkpoint["data"]) == (3, spec)


def test_accepted_changes_bring_no_new_class(folder, flags, trained):
    noise(folder / "train" / "c" / "1.png", 5)
    with pytest.raises(InputError, match=r"train/c has 1 images, not 0"):
        main(get_config([*flags, "--resume=True", "--epochs=2"]))
    with pytest.raises(InputError, match=r"classes that the model was not trained on: c"):
        main(get_config([*flags, "--resume=True", "--accept_changes=True", "--epochs=2"]))


def test_a_folder_that_lies_elsewhere_is_resumed(folder, flags, trained, tmp_path):
    """Under another path, with other times, and listed in another order."""
    shutil.copytree(folder, tmp_path / "elsewhere", copy_function=shutil.copy)
    before = loaders_of(trained)
    now = resumed(flags, trained, f"--data_dir={tmp_path / 'elsewhere'}")
    for a, b in zip(before, now, strict=True):
        assert torch.equal(a.examples.images, b.examples.images) and a.spec == b.spec


def test_a_checkpoint_of_an_earlier_version_resumes_with_the_split_of_then(folder, flags, trained, capsys):
    """It drew a folder's validation images from all classes together, and did not say from which."""
    path = trained.run_dir / "last.pt"
    checkpoint = load_checkpoint(path)
    del checkpoint["images"]
    torch.save(checkpoint, path)
    train, valid = resumed(flags, trained)
    torch.save({**checkpoint, "data": train.spec._asdict()}, path)
    order = torch.randperm(80, generator=make_generator(Stream.SPLIT, trained.training.random_seed))
    paths = sorted((folder / "train").rglob("*.png"), key=str)
    then = {np.asarray(Image.open(paths[i])).tobytes() for i in order[:8]}
    assert pixels(valid) == then
    capsys.readouterr()
    main(get_config([*flags, "--resume=True", "--epochs=2"]))
    assert "does not say what images it was trained on" in capsys.readouterr().out
    assert pixels(resumed(flags, trained)[1]) == then
    os.rename(paths[0], paths[0].with_name("other.png"))
    with pytest.raises(InputError, match="have changed since the run began"):
        resumed(flags, trained)


@pytest.mark.parametrize("what", ["images", "labels"])
def test_other_images_or_labels_of_a_recorded_set_are_noticed(tmp_path, what):
    raw, random = tmp_path / "MNIST" / "raw", np.random.default_rng(0)
    for half, count in (("train", 60), ("t10k", 10)):
        write_idx(raw / f"{half}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{half}-labels-idx1-ubyte", np.arange(count) % 10)
    config = make_config(data_dir=str(tmp_path), epochs=1, use_gpu=False, hidden_size=8, num_glimpses=2,
                         ckpt_dir=str(tmp_path / "ckpt"), plot_dir=str(tmp_path / "plots"))  # fmt: skip
    train_with(config)
    checkpoint = load_checkpoint(config.run_dir / "last.pt", to_resume=True)
    train_with(config.replace(epochs=2, resume=True), checkpoint)
    path = next(raw.glob(f"train-{what}*"))
    content = bytearray(path.read_bytes())
    content[-1] = (content[-1] + 1) % 10
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"have changed since the run began .*: restore them") as error:
        loaders_of(config.replace(resume=True, accept_changes=True), CPU, checkpoint)
    assert "--accept_changes" not in str(error.value)


@pytest.mark.parametrize("stored", [None, 3, {"counts": 3}, {"counts": {}, "digest": 3, "validation": []}])
def test_a_damaged_record_counts_as_none(trained, flags, stored, capsys):
    path = trained.run_dir / "last.pt"
    torch.save({**load_checkpoint(path), "images": stored}, path)
    resumed(flags, trained)
    assert "does not say what images it was trained on" in capsys.readouterr().out
