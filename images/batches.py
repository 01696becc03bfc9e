"""Batches of images, or of games, on the device, and what a model must know of them.

loader = Loader(examples, batch_size=128, device=torch.device("cpu"), shuffle_seed=1)
for batch in loader:
    batch.images, batch.labels
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from games.catch import Games, Rules
from images.canvas import draw_canvases
from images.datasets import Examples, ImageRecord
from images.folder import ImageFiles
from training.cli import InputError
from training.distributed import ALONE, Shard, World
from utils import Stream, make_generator


class Batch(NamedTuple):
    images: Tensor | Games  # (B, C, H, W) uint8; the model normalises what it reads of them. Or B games
    labels: Tensor  # (B,) int64; of a game, 0: it has none
    centres: Tensor  # (B, 2), (x, y) in [-1, 1] of the middle of what was placed on a canvas; without one, 0
    count: int  # images of the whole batch, of which each of several processes has its shard
    shard: Shard  # these images' part of the whole batch


class DataSpec(NamedTuple):
    """What a model must know of its data; a checkpoint holds it, so that a test needs no training images."""

    classes: list[str]
    num_channels: int
    height: int
    width: int
    mean: list[float]  # per channel, of the training images as numbers from 0 to 1
    std: list[float]

    def fits(self, other: "DataSpec") -> bool:
        """Whether both describe the same images; mean and std of another sample, or rounded otherwise, may differ."""
        numbers = zip([*self.mean, *self.std], [*other.mean, *other.std], strict=True)
        return self[:4] == other[:4] and all(abs(a - b) < 1e-3 for a, b in numbers)


def spec_of(checkpoint: dict, path: str | Path) -> DataSpec:
    """The description of its data in a checkpoint that was read from path.

    Raises:
        InputError: there is none.
    """
    spec = checkpoint["data"]
    whole = (
        spec.keys() == set(DataSpec._fields)
        and all(isinstance(spec[name], int) and spec[name] > 0 for name in ("num_channels", "height", "width"))
        and all(isinstance(spec[name], list) for name in ("classes", "mean", "std"))
        and all(isinstance(name, str) for name in spec["classes"])
        and all(isinstance(number, float) for number in [*spec["mean"], *spec["std"]])
        and len(spec["mean"]) == len(spec["std"]) == spec["num_channels"]
    )
    if not whole:
        raise InputError(f"{path} does not say what data it was trained on: restore it, or train again")
    return DataSpec(**spec)


class Canvas(NamedTuple):
    """Where images are placed before they are seen; see `images.canvas.draw_canvases`."""

    size: int
    num_clutter: int


class Loader:
    """Batches of a data set, on the device.

    Args:
        examples: images in memory, or files to stream; None: a subclass draws its own.
        batch_size: images per batch, of all processes together; the last batch holds what is left.
        device: where the batches are to be.
        shuffle_seed: seed of a new order each epoch; None keeps the order.
        canvas: where the images are placed, anew each epoch, or by what rules games are drawn; None leaves images as
            they are.
        canvas_seed: seed of the places and the clutter.
    """

    record: ImageRecord | None = None  # of the training images; of games there is none

    def __init__(
        self,
        examples: Examples | ImageFiles | None,
        *,
        batch_size: int,
        device: torch.device,
        shuffle_seed: int | None = None,
        canvas: Canvas | Rules | None = None,
        canvas_seed: int = 0,
    ):
        if isinstance(examples, Examples):
            examples = examples.map(lambda tensor: tensor.to(device))
        self.examples = examples
        self.batch_size = batch_size
        self.device = device
        self.shuffle_seed = shuffle_seed
        self.canvas = canvas
        self.canvas_seed = canvas_seed
        self.world = ALONE
        self.epoch = 0

    @property
    def num_images(self) -> int:
        return len(self.examples.labels)

    @property
    def centres(self) -> Tensor:
        """(N, 2), of what each image shows, (x, y) in [-1, 1]; useless if it is placed anew at each visit."""
        stored = getattr(self.examples, "centres", None)
        return torch.zeros(self.num_images, 2) if stored is None else stored

    @property
    def in_memory(self) -> bool:
        return isinstance(self.examples, Examples)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def set_epoch(self, epoch: int):
        """Chooses the order and the canvases of the next pass, which depend on the seeds and this number alone."""
        self.epoch = epoch

    def described_by(self, spec: DataSpec) -> "Loader":
        """Sets what a model must know of the data, which the training images define."""
        self.spec = spec
        return self

    def shard_with(self, world: World) -> "Loader":
        """Yields this process's shard of each batch from now on, placed and cluttered as in the whole batch."""
        self.world = world
        return self

    def blank(self, count: int) -> Tensor | Games:
        """Images, or games, of the shape of a batch of so many."""
        return torch.zeros(count, *self.spec[1:4], dtype=torch.uint8, device=self.device)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, first: int = 0) -> Iterator[Batch]:
        """The batches of a pass, from the first-th on, as if those before it had been visited."""
        for step, examples in enumerate(self.raw(first), start=first):
            yield self.batch(examples, min(self.batch_size, self.num_images - step * self.batch_size))

    def batch(self, examples: Examples, count: int) -> Batch:
        """This process's shard of a batch of count images."""
        images, labels, centres = examples
        centres = torch.zeros(len(labels), 2, device=self.device) if centres is None else centres
        return Batch(images, labels, centres, count, self.world.shard(count))

    def raw(self, first: int = 0) -> Iterator[Examples]:
        """This process's images, labels, and centres if there are any, of each batch."""
        if isinstance(self.examples, ImageFiles):
            batches = [index[self.world.shard(len(index)).part] for index in self.order(first)]
            for images, labels in self.examples.decode(batches):
                yield Examples(images.to(self.device), labels.to(self.device))
            return
        for step, index in enumerate(self.order(first), start=first):
            generator = None
            if self.canvas:
                generator = make_generator(Stream.CANVAS, self.canvas_seed, self.epoch, step, self.device)
            yield self.read(index, generator)

    def order(self, first: int = 0) -> tuple[Tensor, ...]:
        """Which images are in each whole batch of a pass, (B,) int64 on the device, from the first-th on."""
        order = torch.arange(self.num_images)
        if self.shuffle_seed is not None:
            generator = make_generator(Stream.ORDER, self.shuffle_seed, self.epoch)
            order = torch.randperm(self.num_images, generator=generator)
        return order.to(self.device).split(self.batch_size)[first:]

    def read(self, index: Tensor, generator: torch.Generator | None = None) -> Examples:
        """This process's shard of a batch of images in memory; nothing here waits for the device.

        Args:
            index: (B,) int64, which images.
            generator: of the canvases' places and clutter, on the device.
        """
        part, count = self.world.shard(len(index)).part, len(index)
        images, labels, centres = self.examples.take(index[part])
        if self.canvas:
            images, centres = draw_canvases(
                images, self.examples.images, **self.canvas._asdict(), generator=generator, shard=(part, count)
            )
        return Examples(images, labels, centres)
