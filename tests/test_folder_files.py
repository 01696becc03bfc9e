"""Files as people have them: transparent, turned by a tag, of other endings, hidden, linked, misnamed, broken."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import CPU, command, folder_config, loader_for_test, loaders_of, noise, put
from PIL import EpsImagePlugin, Image

import plot_glimpses
from config import get_config
from images import datasets
from images.batches import Loader
from images.datasets import Examples, read_examples
from main import main
from model import RecurrentAttention
from plot_glimpses import PlotConfig
from training.cli import InputError


def test_a_file_that_is_not_what_its_name_says_starts_no_program(plain, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    put(plain / "train" / "a" / "x.png", Image.new("RGB", (9, 6)), format="EPS")
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image"):
        loaders_of(folder_config(plain, image_width=9, image_height=6))


def test_images_that_are_all_alike_are_said(plain, capsys):
    loaders_of(folder_config(plain))
    assert "[!]" not in capsys.readouterr().out
    for path in (plain / "train").rglob("*.png"):
        put(path, np.zeros((6, 9), np.uint8))
    loaders_of(folder_config(plain))
    assert "[!] All 36 training images are alike, pixel by pixel" in capsys.readouterr().out


def test_one_line_says_what_was_read_and_what_was_passed_over(plain, capsys):
    for name in ("1.gif", "2.GIF", "notes.txt", ".DS_Store", "README"):
        (plain / "train" / "a" / name).write_bytes(b"")
    put(plain / "train" / "b" / "x.jfif", noise(6, 9), format="JPEG")
    put(plain / "train" / ".ipynb_checkpoints" / "1.png", noise(6, 9))
    put(plain / "train" / "a" / "deep" / "__MACOSX" / "1.png", noise(6, 9))
    put(plain / "train" / "stray.png", noise(6, 9))
    (plain / "train" / "b" / "gone.png").symlink_to(plain / "nowhere.png")
    os.mkfifo(plain / "train" / "b" / "pipe.png")
    loaders_of(folder_config(plain))
    assert capsys.readouterr().out.splitlines()[0] == (
        f"[*] {plain / 'train'}: 2 classes: a 20, b 21; passed over: 2 .gif, 1 .txt, 1 broken link, "
        "1 extensionless file, 1 hidden file, 2 hidden folders, 1 special file, 1 unsorted image"
    )


def test_no_folder_is_visited_twice(plain, capsys):
    (plain / "train" / "a" / "loop").symlink_to(plain / "train")
    (plain / "train" / "a" / "self").symlink_to(plain / "train" / "a")
    other = plain / "elsewhere"
    put(other / "more.png", noise(6, 9))
    (plain / "train" / "b" / "linked").symlink_to(other)  # a link that leads to other images is followed
    (plain / "train" / "b" / "again").symlink_to(other)
    train, valid = loaders_of(folder_config(plain))
    assert train.num_images + valid.num_images == 41
    assert "a 20, b 21; passed over: 3 repeated folders" in capsys.readouterr().out


def test_one_class_alone_is_rejected_and_classes_one_folder_too_deep_are_named(plain):
    (plain / "images" / "train").mkdir(parents=True)
    (plain / "train").rename(plain / "images" / "train" / "all")
    with pytest.raises(InputError, match=r"holds one class alone, all: move its folders \(a, b\) up$"):
        loaders_of(folder_config(plain / "images"))
    shutil.rmtree(plain / "images" / "train" / "all" / "b")
    for path in (plain / "images" / "train" / "all" / "a").iterdir():
        path.rename(plain / "images" / "train" / "all" / path.name)
    with pytest.raises(InputError, match=r"holds one class alone, all: add another$"):
        loaders_of(folder_config(plain / "images"))


def labels_of(loader: Loader) -> list[int]:
    return sorted(loader.examples.labels.tolist())


def test_val_validates_if_it_is_there(plain, capsys):
    for i in range(3):
        put(plain / "val" / "b" / f"{i}.png", np.full((6, 9), 7, np.uint8))
    train, valid = loaders_of(folder_config(plain))
    assert labels_of(train) == [0] * 20 + [1] * 20 and labels_of(valid) == [1] * 3
    assert (valid.examples.images == 7).all()
    printed = capsys.readouterr().out
    assert f"[*] {plain / 'val'}: 1 class: b 3" in printed
    assert "[!] Validation has no image of a: " in printed
    put(plain / "val" / "c" / "1.png", noise(6, 9))
    with pytest.raises(InputError, match="val has classes that the model was not trained on: c"):
        loaders_of(folder_config(plain))


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_folder_is_split_class_by_class(tmp_path, shuffle, capsys):
    counts = {"common": 50, "rare": 3, "single": 1, "some": 26}
    for name, count in counts.items():
        for i in range(count):
            put(tmp_path / "train" / name / f"{i}.png", noise(4, 4))
    train, valid = loaders_of(folder_config(tmp_path, shuffle=shuffle, valid_size=0.2))
    assert Counter(labels_of(valid)) == {0: 10, 1: 1, 3: 5}
    assert Counter(labels_of(train)) == {0: 40, 1: 2, 2: 1, 3: 21}
    assert "[!] Validation has no image of single: " in capsys.readouterr().out
    rows = [set(map(bytes, loader.examples.images.flatten(1).numpy())) for loader in (train, valid)]
    assert len(rows[0]) == 64 and len(rows[1]) == 16 and not rows[0] & rows[1]
    again, other = (
        loaders_of(folder_config(tmp_path, shuffle=shuffle, valid_size=0.2, random_seed=seed))[1] for seed in (1, 2)
    )
    assert torch.equal(valid.examples.images, again.examples.images)
    assert torch.equal(valid.examples.images, other.examples.images) is not shuffle
    assert shuffle is (labels_of(valid) != valid.examples.labels.tolist())  # the first few are of several classes


def test_every_class_of_a_thousand_is_trained_on(tmp_path):
    for name in range(200):
        for i in range(2):
            put(tmp_path / "train" / f"{name:03}" / f"{i}.png", np.full((1, 1), name, np.uint8))
    train, valid = loaders_of(folder_config(tmp_path))
    assert labels_of(train) == labels_of(valid) == list(range(200))


@pytest.mark.parametrize("content", [b"no image", None], ids=["text", "truncated"])
def test_the_first_three_broken_files_are_named_with_their_number(plain, content):
    for path in sorted((plain / "train" / "b").iterdir())[:5]:
        path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(InputError, match=r"5 of 40 files cannot be read") as error:
        loaders_of(folder_config(plain))
    assert str(error.value).count(".png (") == 3 and "and 2 more" in str(error.value)
    assert "\n" not in str(error.value)


def test_broken_files_of_a_streamed_batch_are_named(plain, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 100)
    for name in ("3.png", "4.png"):
        path = plain / "train" / "b" / name
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"2 of 36 files cannot be read .*[34]\.png .*[34]\.png") as error:
        loaders_of(folder_config(plain, num_workers=2))
    assert "\n" not in str(error.value)


def test_test_images_of_another_size_are_noticed_before_the_training_and_get_a_way_on(plain, capsys):
    for path in (plain / "test").rglob("*.png"):
        put(path, noise(12, 12))
    spec = loaders_of(folder_config(plain))[0].spec
    advice = "--is_train=False --image_width=9 --image_height=6 resizes them"
    assert (
        f"[!] A test would fail: the test images are 12 x 12 pixels, those the model was trained on 9 x 6: {advice}"
        in (capsys.readouterr().out)
    )
    with pytest.raises(InputError, match=advice):
        loader_for_test(folder_config(plain), spec)
    resized = loader_for_test(folder_config(plain, image_width=9, image_height=6), spec)
    assert resized.examples.images.shape == (8, 1, 6, 9)


def test_a_test_class_whose_folder_is_empty_is_missing_and_no_error(plain, capsys):
    shutil.rmtree(plain / "test" / "a")
    (plain / "test" / "a").mkdir()
    spec = loaders_of(folder_config(plain))[0].spec
    assert "A test would fail" not in capsys.readouterr().out
    assert labels_of(loader_for_test(folder_config(plain), spec)) == [1] * 4
    assert f"[*] {plain / 'test'}: 2 classes: a 0, b 4" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["missing", "unknown class"])
def test_what_a_test_would_stumble_over_is_said_before_the_training(plain, wrong, capsys):
    if wrong == "missing":
        shutil.rmtree(plain / "test")
    else:
        put(plain / "test" / "violet" / "1.png", noise(6, 9))
    loaders_of(folder_config(plain))
    assert "[!] A test would fail: " in capsys.readouterr().out


def test_a_canvas_holds_test_images_of_any_size(plain, capsys):
    train, _ = loaders_of(folder_config(plain, canvas_size=20))
    assert "A test would fail" not in capsys.readouterr().out
    assert loader_for_test(folder_config(plain, canvas_size=20), train.spec).num_images == 8


def test_workers_are_started_once_for_all_passes(plain, monkeypatch):
    """Of training and validation, with passes that are broken off, and one within another."""
    monkeypatch.setattr(datasets, "IN_MEMORY", 100)
    started = []
    start = torch.multiprocessing.Process.start
    monkeypatch.setattr("torch.multiprocessing.Process.start", lambda p: (started.append(p), start(p))[1])
    train, valid = loaders_of(folder_config(plain, num_workers=2, batch_size=8))
    in_memory = Loader(
        Examples(train.examples.decode_all(), train.examples.labels), batch_size=8, device=CPU, shuffle_seed=1
    )
    for epoch in range(3):
        for loader in (train, in_memory):
            loader.set_epoch(epoch)
        for batch, expected in zip(train, in_memory, strict=True):
            assert torch.equal(batch.images, expected.images) and torch.equal(batch.labels, expected.labels)
        next(iter(valid))
        list(valid)
    assert len(started) == 2
    outer = iter(train)
    first = next(outer)
    assert [len(batch.labels) for batch in valid] == [4]
    assert len(first.labels) + sum(len(batch.labels) for batch in outer) == 36


@pytest.mark.slow
def test_workers_stream_where_processes_are_spawned(plain):
    """As on macOS and Windows, and with Python 3.14."""
    code = f"""import multiprocessing, sys
multiprocessing.set_start_method("spawn")
from images import datasets
from main import run
datasets.IN_MEMORY = 100
sys.exit(run(["--task=folder", "--data_dir={plain}", "--num_workers=2", "--epochs=2", "--batch_size=8",
              "--use_gpu=False", "--ckpt_dir={plain / "ckpt"}", "--plot_dir={plain / "plots"}", "--hidden_size=8"]))
"""
    done = command("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Epoch 2/2" in done.stdout


def test_a_bar_shows_that_images_are_read(plain, capsys):
    read_examples(folder_config(plain).data, 1, train=True, hide_bars=False)
    shown = capsys.readouterr().err
    assert "Open images" in shown and "Read images" in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has Unicode names alone")
def test_a_class_name_that_is_not_utf_8_is_text_everywhere(plain, capsys):
    for half in ("train", "test"):
        os.rename(os.fsencode(plain / half / "b"), os.fsencode(plain / half) + b"/caf\xe9")
    places = [f"--{name}={plain / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    flags = ["--task=folder", f"--data_dir={plain}", "--num_workers=0", "--hidden_size=8", "--num_glimpses=2", *places]
    main(get_config([*flags, "--epochs=1", "--use_tensorboard=True"]))
    main(get_config([*flags, "--epochs=2", "--resume=True"]))
    main(get_config([*flags, "--is_train=False"]))
    printed = capsys.readouterr().out
    assert "[*] Test Acc: " in printed and printed.encode()
    best = get_config(flags).run_dir / "best.pt"
    assert RecurrentAttention.load(best).classes == ["a", "caf\\xe9"]
    assert (
        len(
            plot_glimpses.main(
                PlotConfig(checkpoint=str(best), averages=True, data_dir=str(plain), plot_dir=str(plain))
            )
        )
        == 3
    )


def test_a_class_that_came_from_a_mac_is_the_same_class(plain):
    """Which writes é as two characters."""
    (plain / "train" / "b").rename(plain / "train" / "cafe\u0301")
    (plain / "test" / "b").rename(plain / "test" / "caf\u00e9")
    train, _ = loaders_of(folder_config(plain))
    assert train.spec.classes == ["a", "caf\u00e9"]
    assert labels_of(loader_for_test(folder_config(plain), train.spec)) == [0] * 4 + [1] * 4
