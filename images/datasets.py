"""Reads data sets: MNIST and Fashion-MNIST from torchvision's files, scikit-learn's digits, a user's own folder.

    data_set = read_examples(make_config(task="digits").data, seed=1, train=True)
    data_set.examples.images, data_set.classes

A new data set needs a name in `DataConfig.dataset` and a branch in `read_examples`.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from config import DataConfig
from games.catch import Games
from images.folder import Decoder, DecoderPool, ImageFiles, read_headers
from images.listing import MOST_NAMED, Listing, list_images
from training.cli import InputError, say
from utils import Stream, make_generator, usable_cores

IN_MEMORY = 2 * 2**30  # bytes of a folder's images up to which they are kept in memory
VALIDATION = "val"  # folder of a user's own validation images, beside train and test


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


class ImageRecord(NamedTuple):
    """What a training's images are. A checkpoint keeps it, so that a resume notices other ones."""

    counts: dict[str, int]  # images of each class; of a folder's classes, by their paths: train/cat
    digest: str  # of pixels and labels; of a folder, of each file's name and size
    validation: list[str]  # names of a folder's validation images

    def changes(self, now: "ImageRecord") -> str:
        """What differs now, for people; empty if nothing does."""
        if self.digest == now.digest:
            return ""
        counts = [f"{name} has {now.counts.get(name, 0)} images, not {self.counts.get(name, 0)}"
                  for name in sorted(self.counts | now.counts)
                  if self.counts.get(name, 0) != now.counts.get(name, 0)]  # fmt: skip
        more = f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
        return ", ".join(counts[:MOST_NAMED]) + more or "as many as before, but some are renamed, replaced or moved"

    @classmethod
    def of(cls, checkpoint: dict) -> "ImageRecord | None":
        """The record in a checkpoint; None if it has none, as those of earlier versions, or no whole one."""
        stored = checkpoint.get("images")
        try:
            record = cls(**stored)
            whole = (
                all(isinstance(name, str) and isinstance(count, int) for name, count in record.counts.items())
                and isinstance(record.digest, str)
                and all(isinstance(name, str) for name in record.validation)
            )
        except (TypeError, AttributeError):
            return None
        return record if whole else None


class DataSet(NamedTuple):
    """One half of a data set."""

    examples: Examples | ImageFiles  # in memory, or the files of a folder that is too large for it
    classes: list[str]
    record: ImageRecord
    names: list[str]  # of a folder's images, train/cat/1.png; of other data sets, none


def read_examples(
    data: DataConfig,
    seed: int,
    *,
    train: bool,
    classes: list[str] | None = None,
    channels: int | None = None,
    check: Callable[[ImageRecord], None] = lambda record: None,
    hide_bars: bool | None = None,
) -> DataSet:
    """Reads one half of a data set.

    Args:
        data: which images.
        seed: chooses the digits' test half; the others have one of their own.
        train: the training half, with a folder's validation images if it has a folder of these; or the test half.
        classes, channels: of a folder that a model was trained on, which this half must match; None takes them from the
            images.
        check: called with what the images are before a folder's are decoded; it may raise.
        hide_bars: tqdm's `disable`.
    Raises:
        InputError: it is missing or damaged, or has other classes.
    """
    if data.dataset == "folder":
        return _read_folder(data, train, classes, channels, check, hide_bars)
    if data.dataset == "digits":
        examples, record = _read_digits(seed, train)
    else:
        name = {"mnist": "MNIST", "fashion": "FashionMNIST"}[data.dataset]
        examples, record = _read_idx(name, Path(data.data_dir), train)
    check(record)
    if data.image_height:
        examples = examples._replace(images=_resize(examples.images, (data.image_height, data.image_width)))
    return DataSet(examples, FASHION_CLASSES if data.dataset == "fashion" else DIGITS, record, names=[])


DIGITS = [str(digit) for digit in range(10)]
FASHION_CLASSES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) uint8 -> (N, C, *size) uint8, bilinear."""
    chunks = [F.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in images.split(4096)]
    return torch.cat([chunk.round().to(torch.uint8) for chunk in chunks])


def _record(images: Tensor, labels: Tensor) -> ImageRecord:
    """Of images as they were read, (N, C, H, W) uint8, before anything is computed of them."""
    digest = hashlib.sha256(images.numpy().tobytes())
    digest.update(labels.numpy().tobytes())
    counts = {str(label): count for label, count in enumerate(labels.bincount().tolist())}
    return ImageRecord(counts, digest.hexdigest(), validation=[])


def _read_digits(seed: int, train: bool) -> tuple[Examples, ImageRecord]:
    """scikit-learn's digits, 8x8 with 17 grey levels, resized to 28x28; a fifth, chosen by seed, are for the test."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    stored, labels = torch.from_numpy(digits.images)[:, None], torch.from_numpy(digits.target).long()
    images = _resize(stored * (255 / 16), (28, 28))
    order = torch.randperm(len(images), generator=make_generator(Stream.SPLIT, seed))
    num_test = len(images) // 5
    examples = Examples(images, labels).take(order[num_test:] if train else order[:num_test])
    return examples, _record(stored.to(torch.uint8), labels)


def _read_idx(name: str, data_dir: Path, train: bool) -> tuple[Examples, ImageRecord]:
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
    examples = Examples(images[:, None], labels.long())
    return examples, _record(*examples[:2])


def _read_folder(
    data: DataConfig,
    train: bool,
    classes: list[str] | None,
    channels: int | None,
    check: Callable[[ImageRecord], None],
    hide_bars: bool | None,
) -> DataSet:
    """data_dir/train/CLASS/ with data_dir/val/CLASS/, if there is one, or data_dir/test/CLASS/."""
    listings = list_halves(Path(data.data_dir), train)
    for listing in listings:
        say(f"[*] {listing.root}: {listing.summary()}")
    names = [name for listing in listings for name in listing.names()]
    sizes = [size for listing in listings for size in listing.sizes]
    counts = {f"{listing.root.name}/{name}": count for listing in listings for name, count in listing.counts().items()}
    # Sorted, so that the order in which a file system or a class is listed does not matter.
    listed = "\n".join(sorted(f"{name}\0{size}" for name, size in zip(names, sizes, strict=True)))
    record = ImageRecord(counts, hashlib.sha256(listed.encode()).hexdigest(), validation=[])
    check(record)

    known = listings[0].classes if classes is None else classes
    for listing in listings:
        check_classes(listing, known)
    labels = [known.index(listing.classes[label]) for listing in listings for label in listing.labels]
    paths = [path for listing in listings for path in listing.paths]
    headers = read_headers(paths, resized=bool(data.image_height), hide_bars=hide_bars)
    channels = channels or headers.channels
    size = (data.image_height or headers.size[0], data.image_width or headers.size[1])
    pool = DecoderPool(Decoder(channels, size), min(data.num_workers, len(paths), usable_cores()))
    files = ImageFiles(paths, torch.tensor(labels), pool)
    if len(paths) * channels * size[0] * size[1] <= IN_MEMORY:
        return DataSet(Examples(files.decode_all(hide_bars), files.labels), known, record, names)
    return DataSet(files, known, record, names)


def list_halves(data_dir: Path, train: bool) -> list[Listing]:
    """The images of train, and of val if it is there; or those of test.

    Raises:
        InputError: a folder has no images, or train has one class alone, or one without images.
    """
    if not train:
        return [list_images(data_dir / "test")]
    listing = list_images(data_dir / "train", all_classes=True)
    if len(listing.classes) == 1:
        deeper = sorted({name.split("/")[2] for name in listing.names() if name.count("/") > 2})
        remedy = f"move its folders ({', '.join(deeper[:MOST_NAMED])}) up" if deeper else "add another"
        raise InputError(f"{listing.root} holds one class alone, {listing.classes[0]}: {remedy}")
    validation = data_dir / VALIDATION
    return [listing, *([list_images(validation)] if validation.is_dir() else [])]


def check_classes(listing: Listing, known: list[str]):
    """Raises InputError if there are images of a class that is not among those trained on."""
    unknown = sorted(set(listing.classes) - set(known))
    if unknown:
        raise InputError(f"{listing.root} has classes that the model was not trained on: {', '.join(unknown)}")
