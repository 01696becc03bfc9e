"""Data: read whole, split by seed, normalised, or rejected in one clear line."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SIZES, loader_for_test, loaders_of

from config import make_config
from data_loader import describe
from images.batches import Loader
from images.datasets import Examples, read_examples
from model import RecurrentAttention
from training.cli import InputError

CPU = torch.device("cpu")


def write_idx(path: Path, array: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def small_mnist(tmp_path) -> Path:
    """40 training and 10 test images of 28x28 in MNIST's files."""
    random = np.random.default_rng(0)
    for half, count in (("train", 40), ("t10k", 10)):
        raw = tmp_path / "MNIST" / "raw"
        write_idx(raw / f"{half}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        write_idx(raw / f"{half}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_batches_are_normalised_by_the_training_images(small_mnist):
    train, valid = loaders_of(make_config(data_dir=str(small_mnist), batch_size=16, valid_size=0.25))
    batches = list(train)
    assert [len(batch.labels) for batch in batches] == [16, 14] and len(train) == 2
    images = torch.cat([batch.images for batch in batches])
    assert images.shape == (30, 1, 28, 28) and images.dtype == torch.uint8
    assert batches[0].labels.dtype == torch.int64
    model = RecurrentAttention(**SIZES).normalize_by(train.spec.mean, train.spec.std)
    normalised = model.normalize(images / 255)
    torch.testing.assert_close(normalised.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(correction=0), torch.tensor(1.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.denormalize(normalised), images / 255)
    assert valid.spec == train.spec and valid.num_images == 10
    test = loader_for_test(make_config(data_dir=str(small_mnist)), train.spec)
    raw = read_examples(make_config(data_dir=str(small_mnist)).data, 1, train=False).examples.images
    assert torch.equal(next(iter(test)).images, raw)


def test_each_channel_has_its_own_mean_and_std():
    images = torch.stack([torch.full((6, 4, 5), 10), torch.arange(120).view(6, 4, 5)], dim=1).to(torch.uint8)
    loader = Loader(Examples(images, torch.zeros(6, dtype=torch.long)), batch_size=2, device=CPU)
    spec = describe(loader, ["only"])
    assert spec[1:4] == (2, 4, 5)
    np.testing.assert_allclose(spec.mean, [10 / 255, 59.5 / 255])
    np.testing.assert_allclose(spec.std, [1, np.arange(120).std() / 255])  # a constant channel is not divided by zero


def every_image(loader) -> torch.Tensor:
    return torch.cat([batch.images.flatten(1) for batch in loader])


def test_the_split_depends_on_the_seed_alone_and_loses_nothing(small_mnist):
    def split(**fields):
        return loaders_of(make_config(data_dir=str(small_mnist), valid_size=0.25, **fields))

    rows = [set(map(tuple, every_image(loader).tolist())) for loader in split()]
    assert len(rows[0]) == 30 and len(rows[1]) == 10 and not rows[0] & rows[1]
    assert torch.equal(every_image(split()[1]), every_image(split(batch_size=3)[1]))
    assert not torch.equal(every_image(split()[1]), every_image(split(random_seed=2)[1]))
    in_order = split(shuffle=False)
    assert in_order[0].examples.labels.tolist() == [i % 10 for i in range(10, 40)]


def test_an_epochs_order_depends_on_seed_and_epoch_alone(small_mnist):
    train = loaders_of(make_config(data_dir=str(small_mnist)))[0]
    first = every_image(train)
    assert torch.equal(first, every_image(train))
    train.set_epoch(1)
    second = every_image(train)
    assert not torch.equal(first, second)
    assert torch.equal(first.sum(0), second.sum(0)) or torch.allclose(first.sum(0), second.sum(0), atol=1e-4)
    again = loaders_of(make_config(data_dir=str(small_mnist)))[0]
    again.set_epoch(1)
    assert torch.equal(second, every_image(again))


def test_digits_need_no_files_and_the_three_parts_share_no_image():
    config = make_config(task="digits", dataset="digits", data_dir="/nowhere")
    train, valid = loaders_of(config)
    test = loader_for_test(config, train.spec)
    assert train.num_images + valid.num_images + test.num_images == 1797
    assert (len(train.spec.classes), train.spec.height, train.spec.width) == (10, 28, 28)
    parts = [set(map(bytes, part.examples.images.flatten(1).numpy())) for part in (train, valid, test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert {len(part.examples.labels.unique()) for part in (train, valid, test)} == {10}


def test_real_mnist_is_read_whole(mnist_dir):
    examples, *_ = read_examples(make_config(data_dir=str(mnist_dir)).data, 1, train=True)
    assert examples.images.shape == (60000, 1, 28, 28) and examples.images.dtype == torch.uint8
    assert examples.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    spec = loaders_of(make_config(data_dir=str(mnist_dir)))[0].spec
    np.testing.assert_allclose([*spec.mean, *spec.std], [0.1307, 0.3081], atol=1e-3)  # the field's constants


def test_a_missing_data_set_says_which_files_and_the_ways_on(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # nobody answers there
    with pytest.raises(InputError) as error:
        read_examples(make_config(data_dir=str(tmp_path)).data, 1, train=True)
    for hint in (str(tmp_path), "train-images-idx3-ubyte", "--data_dir=", "--task=digits"):
        assert hint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: b"", lambda data: b"\x12\x34" + data[2:], lambda data: data[:10]],
    ids=["truncated", "empty", "wrong magic", "half a header"],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_a_damaged_file_is_named(small_mnist, name, damage):
    path = small_mnist / "MNIST" / "raw" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"{name}.*fetch"):
        read_examples(make_config(data_dir=str(small_mnist)).data, 1, train=True)


def test_a_gz_that_is_none_is_no_data_set(small_mnist, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # nobody answers there
    raw = small_mnist / "MNIST" / "raw"
    (raw / "train-images-idx3-ubyte").unlink()
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"not gz")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte not found") as error:
        read_examples(make_config(data_dir=str(small_mnist)).data, 1, train=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("labels", [np.arange(39) % 10, np.full(40, 11)], ids=["too few", "out of range"])
def test_labels_that_do_not_fit_are_rejected(small_mnist, labels):
    write_idx(small_mnist / "MNIST" / "raw" / "train-labels-idx1-ubyte", labels)
    with pytest.raises(InputError, match=r"labels.*fetch"):
        read_examples(make_config(data_dir=str(small_mnist)).data, 1, train=True)


def test_a_split_that_leaves_nothing_is_rejected(small_mnist):
    with pytest.raises(InputError, match=r"valid_size=0.001"):
        loaders_of(make_config(data_dir=str(small_mnist), valid_size=0.001))


def test_a_test_set_of_another_shape_is_rejected(small_mnist):
    spec = loaders_of(make_config(data_dir=str(small_mnist)))[0].spec
    with pytest.raises(InputError, match="those the model was trained on"):
        loader_for_test(make_config(data_dir=str(small_mnist)), spec._replace(height=30))


def test_the_last_batch_and_a_batch_larger_than_the_data_are_whole():
    examples = Examples(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.arange(5))
    for size, counts in ((2, [2, 2, 1]), (9, [5])):
        loader = Loader(examples, batch_size=size, device=CPU)
        assert [len(batch.labels) for batch in loader.raw()] == counts and len(loader) == len(counts)


def test_a_pass_may_resume_after_any_batch_the_last_one_too():
    examples = Examples(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10))
    loader = Loader(examples, batch_size=4, device=CPU, shuffle_seed=1)
    whole = [batch.labels.tolist() for batch in loader.raw()]
    assert [len(labels) for labels in whole] == [4, 4, 2]
    for first in range(4):
        assert [batch.labels.tolist() for batch in loader.raw(first)] == whole[first:]
