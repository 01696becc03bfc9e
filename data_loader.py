"""Data sets, read once into memory as bytes; batches are cut, normalised and put on the device as they are asked for.

train_loader, valid_loader = get_train_valid_loader(get_config(["--task=digits"]), torch.device("cpu"))
for images, labels in train_loader: ...
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Config, InputError
from utils import Stream, make_generator


class Batch(NamedTuple):
    images: Tensor  # (B, C, H, W) float32, normalised
    labels: Tensor  # (B,) int64


class Examples(NamedTuple):
    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64


class DataSpec(NamedTuple):
    """What a model must know of its data; a checkpoint keeps it, so that a test needs no training images."""

    num_classes: int
    num_channels: int
    height: int
    width: int
    mean: list[float]  # per channel, of the training images as numbers from 0 to 1
    std: list[float]


class MemoryLoader:
    """Batches of a data set that lies in memory, on the device.

    Args:
        examples: the images and labels.
        spec: how to normalise them.
        batch_size: images per batch; the last batch holds what is left.
        device: where the batches are to be.
        shuffle_seed: seed of a new order each epoch; None keeps the order.
    """

    def __init__(
        self,
        examples: Examples,
        spec: DataSpec,
        *,
        batch_size: int,
        device: torch.device,
        shuffle_seed: int | None = None,
    ):
        self.examples = Examples(*(tensor.to(device) for tensor in examples))
        self.spec = spec
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.epoch = 0
        self.mean = torch.tensor(spec.mean, device=device)[:, None, None] * 255
        self.std = torch.tensor(spec.std, device=device)[:, None, None] * 255

    @property
    def num_images(self) -> int:
        return len(self.examples.labels)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def set_epoch(self, epoch: int):
        """Chooses the order of the next pass, which depends on the seed and this number alone."""
        self.epoch = epoch

    def denormalize(self, images: Tensor) -> Tensor:
        """Batch images (B, C, H, W) as numbers from 0 to 1."""
        return ((images * self.std + self.mean) / 255).clamp(0, 1)

    def __iter__(self) -> Iterator[Batch]:
        images, labels = self.examples
        order = torch.arange(self.num_images)
        if self.shuffle_seed is not None:
            order = torch.randperm(
                self.num_images, generator=make_generator(Stream.ORDER, self.shuffle_seed, self.epoch)
            )
        for index in order.to(images.device).split(self.batch_size):
            yield Batch((images[index] - self.mean) / self.std, labels[index])


def get_train_valid_loader(config: Config, device: torch.device) -> tuple[MemoryLoader, MemoryLoader]:
    """The training images, shuffled anew each epoch, and the validation images split off them by seed.

    Raises:
        InputError: the data set is missing or damaged, or too small for the split.
    """
    examples = read_examples(config, train=True)
    count = len(examples.labels)
    num_valid = int(config.valid_size * count)
    if not 0 < num_valid < count:
        raise InputError(f"valid_size={config.valid_size} of {count} images leaves none to train on or to validate on")
    order = torch.arange(count)
    if config.shuffle:
        order = torch.randperm(count, generator=make_generator(Stream.SPLIT, config.random_seed))
    valid, train = (
        Examples(*(tensor[part] for tensor in examples)) for part in order.split([num_valid, count - num_valid])
    )
    spec = describe(train, num_classes=int(examples.labels.max()) + 1)
    common = {"batch_size": config.batch_size, "device": device}
    return (
        MemoryLoader(train, spec, shuffle_seed=config.random_seed if config.shuffle else None, **common),
        MemoryLoader(valid, spec, **common),
    )


def get_test_loader(config: Config, spec: DataSpec, device: torch.device) -> MemoryLoader:
    """The test images, normalised as the model's training images were.

    Raises:
        InputError: the data set is missing or damaged, or is not of the kind the model was trained on.
    """
    examples = read_examples(config, train=False)
    shape = tuple(examples.images.shape[1:])
    if shape != (spec.num_channels, spec.height, spec.width) or int(examples.labels.max()) >= spec.num_classes:
        raise InputError(
            f"the test images of {config.dataset} differ from those the model was trained on: {shape}, {spec}"
        )
    return MemoryLoader(examples, spec, batch_size=config.batch_size, device=device)


def save_samples(loader: MemoryLoader, path: Path):
    """Saves the first 64 images that a pass gives as a grid, a PNG."""
    from torchvision.utils import save_image

    images = next(iter(loader)).images[:64]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(loader.denormalize(images), path, nrow=8)
    print(f"[*] Samples in {path}")


def describe(train: Examples, num_classes: int) -> DataSpec:
    """Sizes, and each channel's mean and standard deviation; a constant channel counts as of standard deviation 1."""
    _, channels, height, width = train.images.shape
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in train.images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append((share * (values - mean).square()).sum().sqrt().item() or 1.0)
    return DataSpec(num_classes, channels, height, width, means, stds)


def read_examples(config: Config, *, train: bool) -> Examples:
    """Reads one half of a data set whole.

    Raises:
        InputError: it is missing or damaged.
    """
    if config.dataset == "digits":
        return _read_digits(config.random_seed, train)
    return _read_mnist(Path(config.data_dir), train)


def _read_digits(seed: int, train: bool) -> Examples:
    """scikit-learn's digits, 8x8 with 17 grey levels, resized to 28x28; a fifth, chosen by seed, are for the test."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    pixels = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(pixels, size=(28, 28), mode="bilinear").round().to(torch.uint8)
    order = torch.randperm(len(images), generator=make_generator(Stream.SPLIT, seed))
    num_test = len(images) // 5
    part = order[num_test:] if train else order[:num_test]
    return Examples(images[part], torch.from_numpy(digits.target).long()[part])


def _read_mnist(data_dir: Path, train: bool) -> Examples:
    from torchvision.datasets import MNIST  # takes a second to import

    raw = data_dir / "MNIST" / "raw"
    half = "train" if train else "t10k"
    names = [f"{half}-images-idx3-ubyte", f"{half}-labels-idx1-ubyte"]
    # torchvision wants the files of both halves, downloads those that are missing, and says so on stdout.
    every = [Path(resource).stem for resource, _ in MNIST.resources]
    missing = [name for name in every if not (raw / name).is_file()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            data = MNIST(str(data_dir), train=train, download=bool(missing))
    except Exception as error:  # what a broken file or network raises is nowhere stated
        if missing:
            raise InputError(
                f"{', '.join(missing)} not found in {raw} and not to be downloaded ({type(error).__name__}): put the "
                f"files there, name their folder with --data_dir=, or use --task=digits, which needs none"
            ) from error
        raise InputError(
            f"{raw} holds {' or '.join(names)} damaged ({str(error) or 'wrong size'}): fetch them again"
        ) from error
    images, labels = data.data, data.targets
    if images.ndim != 3 or len(images) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise InputError(
            f"{raw} holds {tuple(images.shape)} images and {len(labels)} labels from {labels.min()} to {labels.max()}, "
            f"not as many images as labels from 0 to 9: fetch {' and '.join(names)} again"
        )
    return Examples(images[:, None], labels.long())
