"""Reads data sets: MNIST and Fashion-MNIST from torchvision's files, scikit-learn's digits, a user's own folder.

    examples, classes = read_examples(make_config(task="digits").data, seed=1, train=True)

A new data set needs a name in `DataConfig.dataset` and a branch in `read_examples`.
"""

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from config import DataConfig
from images.catch import Games
from training.cli import InputError
from utils import Stream, ignore_stop_signals, make_generator, spared_signals, usable_cores

IN_MEMORY = 2 * 2**30  # bytes of a folder's images up to which they are kept in memory


class Examples(NamedTuple):
    images: Tensor | Games  # (N, C, H, W) uint8, or N games
    labels: Tensor  # (N,) int64; of a game, 0: it has none
    centres: Tensor | None = None  # (N, 2), (x, y) in [-1, 1] of what each image shows; None: all in the middle

    def take(self, index: Tensor) -> "Examples":
        return self.map(lambda tensor: tensor.index_select(0, index))  # copies whole images, not bytes one by one

    def map(self, function: Callable[[Tensor], Tensor]) -> "Examples":
        def applied(part):
            return part.map(function) if isinstance(part, Games) else None if part is None else function(part)

        return Examples(*map(applied, self))


class ImageFiles(Dataset):
    """A folder's images, decoded as they are asked for.

    Args:
        paths: of the images.
        labels: (N,) int64.
        channels: 1 for grey, 3 for colour; images are converted.
        size: (height, width); images are resized.
    """

    def __init__(self, paths: list[str], labels: Tensor, channels: int, size: tuple[int, int]):
        self.paths = paths
        self.labels = labels
        self.channels = channels
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """(C, H, W) uint8 and its label."""
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor

        try:
            with Image.open(self.paths[i]) as image:
                if image.mode.startswith("I;16"):  # which convert would cut off at 255
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = image.convert("L" if self.channels == 1 else "RGB")
                if image.size != self.size[::-1]:
                    image = image.resize(self.size[::-1], Image.Resampling.BILINEAR)
                return pil_to_tensor(image), self.labels[i]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what broken files raise
            raise InputError(f"{self.paths[i]} cannot be read as an image ({error}): repair or remove it") from error

    def take(self, index: Tensor) -> "ImageFiles":
        return ImageFiles([self.paths[i] for i in index], self.labels[index], self.channels, self.size)


def read_examples(
    data: DataConfig, seed: int, *, train: bool, classes: list[str] | None = None, channels: int | None = None
) -> tuple[Examples | ImageFiles, list[str]]:
    """Reads one half of a data set, and the names of its classes.

    Args:
        data: which images.
        seed: chooses the digits' test half; the others have one of their own.
        train: the training half, or the test half.
        classes, channels: of a folder's training half, which its test half must match; None takes them from the images.
    Returns:
        Images in memory, or the files of a folder that is too large for it.
    Raises:
        InputError: it is missing or damaged, or has other classes.
    """
    if data.dataset == "folder":
        return _read_folder(data, "train" if train else "test", classes, channels)
    if data.dataset == "digits":
        examples = _read_digits(seed, train)
    else:
        examples = _read_idx({"mnist": "MNIST", "fashion": "FashionMNIST"}[data.dataset], Path(data.data_dir), train)
    if data.image_height:
        examples = examples._replace(images=_resize(examples.images, (data.image_height, data.image_width)))
    return examples, [str(digit) for digit in range(10)] if data.dataset != "fashion" else FASHION_CLASSES


FASHION_CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, *size) uint8, bilinear."""
    chunks = [F.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in images.split(4096)]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in chunks])


def _read_digits(seed: int, train: bool) -> Examples:
    """scikit-learn's digits, 8x8 with 17 grey levels, resized to 28x28; a fifth, chosen by seed, are for the test."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = _resize(torch.from_numpy(digits.images)[:, None] * (255 / 16), (28, 28))
    order = torch.randperm(len(images), generator=make_generator(Stream.SPLIT, seed))
    num_test = len(images) // 5
    return Examples(images, torch.from_numpy(digits.target).long()).take(
        order[num_test:] if train else order[:num_test]
    )


def _read_idx(name: str, data_dir: Path, train: bool) -> Examples:
    """MNIST or Fashion-MNIST; what is missing is downloaded."""
    from torchvision import datasets  # takes a second to import

    source = getattr(datasets, name)
    raw = data_dir / name / "raw"
    half = "train" if train else "t10k"
    names = [f"{half}-images-idx3-ubyte", f"{half}-labels-idx1-ubyte"]
    # torchvision wants the files of both halves, downloads those that are missing, and says so on stdout.
    every = [Path(resource).stem for resource, _ in source.resources]
    missing = [file for file in every if not (raw / file).is_file()]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            stored = source(str(data_dir), train=train, download=bool(missing))
    except Exception as error:  # no documentation says what a broken file or network raises
        if missing:
            raise InputError(
                f"{', '.join(missing)} not found in {raw} and not to be downloaded ({type(error).__name__}): put the "
                f"files there, name their folder with --data_dir=, or use --task=digits, which needs none"
            ) from error
        what = " or ".join(names)
        raise InputError(f"{raw} holds {what} damaged ({str(error) or 'wrong size'}): fetch them again") from error
    images, labels = stored.data, stored.targets
    if images.ndim != 3 or len(images) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise InputError(
            f"{raw} holds {tuple(images.shape)} images and {len(labels)} labels from {labels.min()} to {labels.max()}, "
            f"not as many images as labels from 0 to 9: fetch {' and '.join(names)} again"
        )
    return Examples(images[:, None], labels.long())


def _read_folder(
    data: DataConfig, half: str, classes: list[str] | None, channels: int | None
) -> tuple[Examples | ImageFiles, list[str]]:
    """data_dir/half/CLASS/image files, as torchvision's ImageFolder wants them."""
    from torchvision.datasets import ImageFolder  # takes a second to import

    root = Path(data.data_dir) / half
    try:
        folder = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise InputError(f"{root} must hold a folder of images for each class: {error}") from error
    classes = folder.classes if classes is None else classes
    unknown = sorted(set(folder.classes) - set(classes))
    if unknown:
        raise InputError(f"{root} has classes that the training images lack: {', '.join(unknown)}")
    paths = [path for path, _ in folder.samples]
    labels = torch.tensor([classes.index(folder.classes[label]) for _, label in folder.samples])

    colour, (height, width) = _inspect(paths, resized=bool(data.image_height))
    channels = channels or (3 if colour else 1)
    size = (data.image_height or height, data.image_width or width)
    files = ImageFiles(paths, labels, channels, size)
    if len(paths) * channels * size[0] * size[1] > IN_MEMORY:
        return files, classes
    images = torch.empty(len(paths), channels, *size, dtype=torch.uint8)
    batches = torch.arange(len(files)).split(256)
    for index, (batch, _) in zip(batches, decode(files, batches, data.num_workers), strict=True):
        images[index] = batch
    return Examples(images, labels), classes


def _inspect(paths: list[str], resized: bool) -> tuple[bool, tuple[int, int]]:
    """Whether any image is in colour, and the height and width of all, from their headers alone.

    Raises:
        InputError: one cannot be read, has pixels of more than 16 bits, or, where they are not to be resized, another
            size.
    """
    from PIL import Image

    colour, first = False, None
    for path in paths:
        try:
            with Image.open(path) as image:
                mode, size = image.mode, (image.height, image.width)
        except (OSError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} cannot be read as an image ({error}): repair or remove it") from error
        if mode in ("I", "F"):  # nobody knows between which numbers they lie
            raise InputError(f"{path} has pixels of 32 bits: save the images with 8 or 16")
        colour |= mode not in ("1", "L", "LA") and not mode.startswith("I;16")
        first = first or size
        if size != first and not resized:
            raise InputError(
                f"{path} is {size[1]} x {size[0]} pixels and {paths[0]} {first[1]} x {first[0]}: "
                f"give all one size with --image_width= and --image_height="
            )
    return colour, first


def decode(files: ImageFiles, batches: Sequence[Tensor], num_workers: int):
    """Yields (images, labels) of a folder for each batch, given as indices (B,), decoded by worker processes.

    Raises:
        InputError: an image cannot be read.
    """
    order = [index.tolist() for index in batches]
    try:
        # The loader draws a seed for its workers; not from the global generator, which draws the initial weights.
        alone, count = torch.Generator(), min(num_workers, len(files), usable_cores())
        with spared_signals():
            batches = iter(DataLoader(files, batch_sampler=order, num_workers=count, generator=alone,
                                      worker_init_fn=ignore_stop_signals))  # fmt: skip
        yield from batches
    except InputError as error:  # a worker's comes wrapped in its traceback
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("training.cli.InputError: ")) from None
