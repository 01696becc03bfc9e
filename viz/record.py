"""Where a model looked, as arrays: a training saves them, plot_glimpses.py draws them.

glimpses = load_glimpses("plots/ram_6_8x8_1/glimpses_30.npz")
glimpses.locations[0], glimpses.probabilities[0]    # of the first image, one row for each glimpse
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Config, config_of, make_config
from data_loader import get_test_loader
from images.batches import Batch, DataSpec, Loader, spec_of
from model import RecurrentAttention
from training.checkpoint import check_archive, load_checkpoint, model_of, write_whole
from training.cli import InputError
from training.distributed import pick_device
from training.evaluation import evaluation_locations

PER_IMAGE = ("images", "labels", "locations", "patches", "probabilities")  # fields of Glimpses
NUM_SAVED = 9  # validation images whose glimpses a training saves and draws


class Glimpses(NamedTuple):
    """Where a model looked in N images, what it saw there, and what class it predicted."""

    images: np.ndarray  # (N, C, H, W), from 0 to 1
    labels: np.ndarray  # (N,); -1: nobody knows
    locations: np.ndarray  # (N, T, 2), (x, y) in [-1, 1]
    patches: np.ndarray  # (N, T, num_patches, C, g, g), from 0 to 1: the retina's output
    probabilities: np.ndarray  # (N, T, num_classes), of the classes, after each glimpse
    classes: np.ndarray  # (num_classes,), their names
    outside: np.ndarray  # (C,), from 0 to 1: what the retina reads beyond the border
    glimpse_scale: int

    @property
    def predictions(self) -> np.ndarray:
        """(N, T), the class of the highest probability after each glimpse; the last is the model's."""
        return self.probabilities.argmax(axis=-1)

    @property
    def wrong(self) -> np.ndarray:
        """(N,), whether the last prediction is not the label."""
        return self.predictions[:, -1] != self.labels

    def take(self, index) -> "Glimpses":
        """The glimpses of some images: a slice, or an array of numbers or of booleans (N,)."""
        return self._replace(**{name: getattr(self, name)[index] for name in PER_IMAGE})

    def boxes(self) -> np.ndarray:
        """The pixels that each patch covers: (N, T, num_patches, 3), (left, top, width)."""
        num_patches, _, patch_size = self.patches.shape[2:5]
        return patch_boxes(self.locations, self.images.shape[-2:], patch_size, num_patches, self.glimpse_scale)


def patch_boxes(
    locations: np.ndarray, size: tuple[int, int], patch_size: int, num_patches: int, glimpse_scale: int
) -> np.ndarray:
    """The pixels that the patches of glimpses cover.

    Args:
        locations: (..., 2).
        size: height and width of the image.
    Returns:
        (..., num_patches, 3): left, top, width.
    """
    centres = np.floor((locations.astype(np.float32) + 1) / 2 * np.array(size[::-1], np.float32))
    widths = patch_size * glimpse_scale ** np.arange(num_patches)
    corners = centres[..., None, :] - (widths // 2)[:, None]
    return np.concatenate([corners, np.broadcast_to(widths[:, None], (*corners.shape[:-1], 1))], axis=-1)


@torch.no_grad()
def look(model: RecurrentAttention, batch: Batch, first_locations: Tensor, spec: DataSpec) -> Glimpses:
    """The glimpses of a model, in evaluation mode, in a batch.

    Args:
        model: on the batch's device.
        batch: of B images.
        first_locations: (B, 2), or whole fixed paths, (B, T, 2).
        spec: of the images.
    """
    rollout = model(batch.images, first_locations)
    retina, count, channels = model.retina, *batch.images.shape[:2]
    scene = retina.prepare(batch.images, model.num_glimpses, model.image_mean, model.image_std)
    read = torch.stack([retina.look(scene, location) for location in rollout.locations.unbind(1)], dim=1)
    sizes = (count, -1, retina.num_patches, channels, retina.patch_size, retina.patch_size)
    arrays = (
        batch.images / 255,
        batch.labels,
        rollout.locations,
        model.denormalize(read.view(sizes)),
        model.classifier(rollout.hiddens).exp(),
    )
    return Glimpses(
        *(tensor.numpy(force=True) for tensor in arrays),
        classes=np.array(spec.classes),
        outside=np.array(spec.mean, np.float32),
        glimpse_scale=retina.glimpse_scale,
    )


class Trained(NamedTuple):
    """A trained model, and what it was trained on."""

    model: RecurrentAttention  # in evaluation mode
    spec: DataSpec  # of its images
    config: Config  # of the training


def open_model(path: str | Path, data_dir: str = "./data") -> Trained:
    """The model of a checkpoint, on the device; arguments and errors as `open_checkpoint`, but it needs no data."""
    checkpoint = load_checkpoint(path)
    config = config_of(checkpoint["config"], path).of_this_machine(make_config(data_dir=data_dir))
    model = model_of(checkpoint, path).to(pick_device(config.machine.use_gpu)).eval()
    return Trained(model, spec_of(checkpoint, path), config)


class Source(NamedTuple):
    """A trained model, and its test images."""

    model: RecurrentAttention
    loader: Loader
    first_locations: Tensor  # (N, 2), of each test image; whole fixed paths, (N, T, 2), if no policy was learned
    config: Config  # of the training


def open_checkpoint(path: str | Path, data_dir: str = "./data") -> Source:
    """The model of a checkpoint with its test images, and where a test looks first in them.

    Args:
        data_dir: folder of the data sets. A checkpoint does not choose it: what is missing there is downloaded.
    Raises:
        InputError: the checkpoint or its data cannot be read.
    """
    model, spec, config = open_model(path, data_dir)
    loader = get_test_loader(config.data, config.training.random_seed, spec, model.std.device)
    return Source(model, loader, evaluation_locations(config.replace(M=1), loader)[0], config)


def look_at_chosen(source: Source, *, indices: list[int], label: str, errors: bool, count: int) -> Glimpses:
    """The glimpses of a model in some test images; arguments as `choose`."""
    model, loader, first_locations, _ = source
    labels, classes = loader.examples.labels.numpy(force=True), loader.spec.classes
    candidates = torch.from_numpy(find(labels, classes, indices, label))
    count = len(candidates) if indices else count
    found: list[Glimpses] = []
    for index in candidates.split(max(count, loader.batch_size) if errors else count):
        index = index.to(loader.device)
        part = Loader(loader.examples.take(index), batch_size=len(index), device=loader.device)
        [batch] = part
        glimpses = look(model, batch, first_locations[index], loader.spec)
        found.append(glimpses.take(glimpses.wrong) if errors else glimpses)
        if sum(len(part.labels) for part in found) >= count:
            break
    return first(joined(found), count)


def joined(parts: list[Glimpses]) -> Glimpses:
    """The glimpses of one model in several batches as those of one."""
    return parts[0]._replace(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_IMAGE})


def choose(glimpses: Glimpses, *, indices: list[int], label: str, errors: bool, count: int) -> Glimpses:
    """Some of the images.

    Args:
        indices: take these alone; empty: any.
        label: take those of this class alone; empty: of any.
        errors: take those alone whose class the model predicts wrong.
        count: take so many, at most; all, if indices are given.
    Raises:
        InputError: there are none such.
    """
    chosen = glimpses.take(find(glimpses.labels, glimpses.classes.tolist(), indices, label))
    chosen = chosen.take(chosen.wrong) if errors else chosen
    return first(chosen, len(chosen.labels) if indices else count)


def find(labels: np.ndarray, classes: list[str], indices: list[int], label: str) -> np.ndarray:
    """The places of images (N,) with these indices and this label; see `choose`."""
    if indices and max(indices) >= len(labels):
        raise InputError(f"indices={max(indices)} is not among the {len(labels)} images, counted from 0")
    if label and label not in classes:
        raise InputError(f"label={label} is not among the classes: {', '.join(classes)}")
    candidates = np.array(indices) if indices else np.arange(len(labels))
    candidates = candidates[labels[candidates] == classes.index(label)] if label else candidates
    if not len(candidates):
        raise InputError(f"no image of class {label} is among those: name others with --indices= or --label=")
    return candidates


def first(glimpses: Glimpses, count: int) -> Glimpses:
    if not len(glimpses.labels):
        raise InputError("the model is right about all of these images: leave --errors=True out, or name others")
    return glimpses.take(slice(count))


def save_glimpses(path: Path, glimpses: Glimpses):
    buffer = io.BytesIO()
    np.savez(buffer, **glimpses._asdict())
    write_whole(path, buffer.getvalue())


def load_glimpses(path: str | Path) -> Glimpses:
    """Reads what `save_glimpses` wrote, without pickle.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as arrays:
            glimpses = Glimpses(**{name: arrays[name] for name in Glimpses._fields})
        check_shapes(glimpses)
        return glimpses._replace(glimpse_scale=int(glimpses.glimpse_scale))
    except Exception as error:  # neither zipfile nor numpy names what damaged bytes raise
        raise InputError(
            f"{path} does not hold saved glimpses of this version ({error}): draw the run's checkpoint with "
            f"--checkpoint=, or train with --plot_freq=1"
        ) from error


def check_shapes(glimpses: Glimpses):
    """Raises ValueError unless the arrays are of the shapes and kinds that `Glimpses` says."""
    count, steps, _, channels, _, _ = glimpses.patches.shape
    num_classes = len(glimpses.classes)
    shapes = {
        "images": (count, channels, *glimpses.images.shape[-2:]),
        "labels": (count,),
        "locations": (count, steps, 2),
        "probabilities": (count, steps, num_classes),
        "outside": (channels,),
        "glimpse_scale": (),
    }
    for name, shape in shapes.items():
        array = getattr(glimpses, name)
        if array.shape != shape or array.size == 0 or not np.isfinite(array).all():
            raise ValueError(f"its {name} are {array.shape}, or not finite numbers")
    if not 0 <= glimpses.labels.min() <= glimpses.labels.max() < num_classes:
        raise ValueError(f"its labels are not below {num_classes}")
