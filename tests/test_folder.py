"""A user's own images: colour, not square, streamed or in memory; what does not fit ends in one line."""

import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same, loader_for_test, loaders_of, train
from PIL import Image

import images.folder
import plot_glimpses
from config import Config, get_config, make_config
from images import datasets
from images.datasets import Examples, ImageFiles, read_examples
from images.folder import Decoder
from main import main, run
from plot_glimpses import PlotConfig
from trainer import Trainer
from training.checkpoint import load_checkpoint
from training.cli import InputError

CPU = torch.device("cpu")
CLASSES = {"amber": (230, 159, 0), "blue": (0, 114, 178), "green": (0, 158, 115)}


def draw(path: Path, colour, random, size=(40, 26), mode="RGB"):
    """Noise with a square in the class's colour."""
    pixels = random.integers(0, 70, (size[1], size[0], 3), dtype=np.uint8)
    y, x = random.integers(size[1] - 12), random.integers(size[0] - 12)
    pixels[y : y + 12, x : x + 12] = colour
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """480 training and 60 test images, 40 wide and 26 high."""
    random = np.random.default_rng(0)
    for half, count in (("train", 160), ("test", 20)):
        for name, colour in CLASSES.items():
            for i in range(count):
                draw(tmp_path / "images" / half / name / f"{i}.png", colour, random)
    return tmp_path / "images"


def config_of(folder: Path, **fields) -> Config:
    return make_config(**{"task": "folder", "dataset": "folder", "data_dir": str(folder), "num_workers": 0, **fields})


@pytest.mark.slow
def test_trains_above_95_percent_tests_and_animates(folder, tmp_path, capsys):
    places = [f"--{name}={tmp_path / name}" for name in ("ckpt_dir", "logs_dir", "plot_dir")]
    flags = ["--task=folder", f"--data_dir={folder}", "--num_workers=0", *places]
    main(get_config([*flags, "--epochs=60", "--batch_size=24", "--hidden_size=64"]))
    main(get_config([*flags, "--is_train=False"]))
    correct = re.search(r"Test Acc: (\d+)/60", capsys.readouterr().out).group(1)
    assert int(correct) > 0.95 * 60
    checkpoint = tmp_path / "ckpt_dir" / "folder_ram_6_8x8_1" / "best.pt"
    places = {"data_dir": str(folder), "plot_dir": str(tmp_path / "plot_dir")}
    [path] = plot_glimpses.main(PlotConfig(checkpoint=str(checkpoint), num_images=3, **places))
    assert Image.open(path).n_frames >= 6


def test_classes_channels_and_sizes_come_from_the_data(folder):
    train_loader, valid = loaders_of(config_of(folder))
    assert train_loader.spec.classes == ["amber", "blue", "green"]
    assert train_loader.spec[1:4] == (3, 26, 40)
    assert train_loader.num_images + valid.num_images == 480
    batch = next(iter(train_loader))
    assert batch.images.shape == (128, 3, 26, 40)
    assert isinstance(train_loader.examples, Examples)


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_grey_images_of_16_bits_keep_their_shades(tmp_path, byte_order):
    shades = np.arange(0, 65536, 64, dtype=byte_order).reshape(32, 32)
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
    Image.fromarray(shades).save(tmp_path / "train" / "a" / "1.tiff")
    Image.fromarray(shades.astype("<u2")).save(tmp_path / "train" / "b" / "2.png")
    examples, *_ = read_examples(config_of(tmp_path).data, 1, train=True)
    assert examples.images.shape == (2, 1, 32, 32)
    for image in examples.images:
        assert torch.equal(image[0], torch.from_numpy((shades // 256).astype(np.uint8)))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_images_of_32_bits_are_rejected(tmp_path, kind):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(np.ones((9, 9), kind)).save(tmp_path / "train" / name / "1.tiff")
    with pytest.raises(InputError, match=r"1\.tiff has pixels of 32 bits: save the images with 8 or 16"):
        read_examples(config_of(tmp_path).data, 1, train=True)


def test_what_decoding_draws_is_not_what_the_weights_are_drawn_from(folder):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    read_examples(config_of(folder).data, 1, train=True)
    assert torch.equal(torch.rand(3), expected)


def test_grey_images_have_one_channel(tmp_path):
    random = np.random.default_rng(0)
    for half in ("train", "test"):
        for name, colour in CLASSES.items():
            for i in range(4):
                draw(tmp_path / half / name / f"{i}.png", colour, random, mode="L")
    assert loaders_of(config_of(tmp_path, valid_size=0.3))[0].spec.num_channels == 1


def test_without_validation_all_images_train(folder):
    halves = loaders_of(config_of(folder))
    train, valid = loaders_of(config_of(folder, valid_size=0))
    assert valid is None and train.num_images == sum(half.num_images for half in halves)
    assert train.record.validation == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_set_larger_than_memory_streams_the_same_images(folder, num_workers, monkeypatch):
    in_memory = loaders_of(config_of(folder))
    monkeypatch.setattr(datasets, "IN_MEMORY", 1000)
    streamed = loaders_of(config_of(folder, num_workers=num_workers))
    assert isinstance(streamed[0].examples, ImageFiles)
    np.testing.assert_allclose(streamed[0].spec.mean, in_memory[0].spec.mean)
    for kept, read in zip(in_memory, streamed, strict=True):
        kept.set_epoch(3)
        read.set_epoch(3)
        for a, b in zip(kept, read, strict=True):
            assert torch.equal(a.labels, b.labels)
            torch.testing.assert_close(a.images, b.images)


def test_a_streamed_set_trains(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 1000)
    config = config_of(folder, epochs=1, **{name: str(tmp_path / name) for name in ("ckpt_dir", "plot_dir")})
    train(config)
    assert (config.run_dir / "best.pt").exists()


@pytest.mark.parametrize("in_memory", [2**31, 1000], ids=["in memory", "streamed"])
def test_a_run_in_parts_equals_a_run_in_one(folder, tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr(datasets, "IN_MEMORY", in_memory)
    flags = ["--task=folder", f"--data_dir={folder}", "--num_workers=0", "--epochs=2", "--batch_size=24",
             f"--ckpt_dir={tmp_path / 'ckpt'}", f"--plot_dir={tmp_path / 'plots'}", "--save_every_steps=4"]  # fmt: skip
    train_step = Trainer.train_step

    def step_and_die(trainer, *arguments):
        if (trainer.progress.epoch, trainer.progress.step) == (1, 6):  # after the saving at step 4
            raise KeyboardInterrupt
        return train_step(trainer, *arguments)

    main(get_config([*flags, "--run_name=straight"]))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "train_step", step_and_die)
        main(get_config([*flags, "--run_name=parts"]))
    main(get_config([*flags, "--run_name=parts", "--resume=True"]))
    straight, parts = (load_checkpoint(tmp_path / "ckpt" / name / "last.pt") for name in ("straight", "parts"))
    for key in ("model_state", "optim_state", "best_valid_acc", "epoch"):
        assert_same(straight[key], parts[key])


def test_images_are_resized_on_request(folder):
    sizes = {"image_height": 13, "image_width": 20}
    spec = loaders_of(config_of(folder, **sizes))[0].spec
    assert spec[1:4] == (3, 13, 20)
    digits, *_ = read_examples(make_config(dataset="digits", **sizes).data, 1, train=True)
    assert digits.images.shape[1:] == (1, 13, 20)


def test_a_height_without_a_width_is_rejected():
    with pytest.raises(InputError, match="image_height=13 is not allowed: it must be given with image_width"):
        make_config(image_height=13)


def test_mixed_sizes_are_named_and_resized_on_request(folder):
    draw(folder / "train" / "blue" / "odd.png", CLASSES["blue"], np.random.default_rng(1), size=(30, 30))
    with pytest.raises(InputError, match=r"(?s)odd.png.*40 x 26.*--image_width= and --image_height="):
        loaders_of(config_of(folder))
    assert loaders_of(config_of(folder, image_height=26, image_width=40))[0].num_images == 433


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(folder, content, num_workers):
    path = folder / "train" / "green" / "7.png"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(InputError, match=r"7\.png cannot be read as an image") as error:
        loaders_of(config_of(folder, num_workers=num_workers))
    assert "\n" not in str(error.value)


def test_an_image_too_large_to_be_opened_safely_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"480 of 480 files .*: \S+/amber/0\.png .*decompression bomb"):
        loaders_of(config_of(folder))


def test_a_class_in_test_that_train_lacks_is_named(folder):
    spec = loaders_of(config_of(folder))[0].spec
    shutil.copytree(folder / "test" / "blue", folder / "test" / "violet")
    with pytest.raises(InputError, match="classes that the model was not trained on: violet"):
        loader_for_test(config_of(folder), spec)


def test_test_classes_keep_the_training_numbers(folder):
    spec = loaders_of(config_of(folder))[0].spec
    shutil.rmtree(folder / "test" / "amber")
    assert loader_for_test(config_of(folder), spec).examples.labels.unique().tolist() == [1, 2]


@pytest.mark.parametrize(
    "prepare", [lambda p: None, lambda p: (p / "train").mkdir(), lambda p: (p / "train/a").mkdir(parents=True)]
)
def test_an_empty_folder_is_named(tmp_path, prepare):
    prepare(tmp_path)
    with pytest.raises(InputError, match=r"train must hold a folder of images for each class") as error:
        loaders_of(config_of(tmp_path))
    assert "\n" not in str(error.value)
    assert ("--data_dir= names where it lies" in str(error.value)) != (tmp_path / "train").exists()


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL], ids=["full /dev/shm", "out of memory"])
def test_a_worker_that_dies_ends_in_one_line(folder, tmp_path, monkeypatch, capsys, number):
    decode_one, parent = Decoder.decode, os.getpid()

    def decode_or_die(decoder, path):
        if os.getpid() != parent:
            os.kill(os.getpid(), number)
        return decode_one(decoder, path)

    monkeypatch.setattr(Decoder, "decode", decode_or_die)
    assert run(["--task=folder", f"--data_dir={folder}", "--num_workers=1", f"--ckpt_dir={tmp_path}"]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("main.py")]
    for hint in ("has died", "shared memory (/dev/shm)", "fewer --num_workers=", "--shm-size=1g"):
        assert hint in line


def test_there_are_no_more_workers_than_cores(folder, monkeypatch, recwarn):
    started = []
    loader = images.folder.DataLoader
    monkeypatch.setattr(
        images.folder, "DataLoader", lambda *a, **k: started.append(k["num_workers"]) or loader(*a, **k)
    )
    monkeypatch.setattr(datasets, "usable_cores", lambda: 1)
    loaders_of(config_of(folder, num_workers=4))
    assert started == [1] and not [warning for warning in recwarn if "worker processes" in str(warning.message)]
