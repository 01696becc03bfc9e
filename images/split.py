"""Which training images validate: chosen by seed, of a folder class by class, and kept when a run resumes.

train, valid = split(data_set, config.data, seed=1)
"""

import torch
from torch import Tensor

from config import DataConfig
from images.datasets import VALIDATION, DataSet, ImageRecord
from training.cli import InputError, say
from utils import Stream, make_generator


def split(
    data_set: DataSet, data: DataConfig, seed: int, begun: ImageRecord | None = None, is_new: bool = True
) -> tuple[Tensor, Tensor]:
    """The places of the images for training, and of those for validation.

    A new run takes a folder's val/ if there is one, else a fraction of each of its classes. A resumed one takes the
    images that validated it before. Without a fraction, all are for training.

    Args:
        begun: what a resumed run was begun with; None if its checkpoint, of an earlier version, does not say.
        is_new: the run begins.
    Raises:
        InputError: no image is left to train on, or to validate on.
    """
    labels, names = data_set.examples.labels.cpu(), data_set.names
    generators = [make_generator(Stream.SPLIT, seed) for _ in range(2)]  # of the choice, and of the order

    def in_order(count: int, generator: torch.Generator = generators[0]) -> Tensor:
        return torch.randperm(count, generator=generator) if data.shuffle else torch.arange(count)

    if not data.valid_size:
        return in_order(len(labels)), torch.zeros(0, dtype=torch.long)
    own = [name.startswith(f"{VALIDATION}/") for name in names]
    if begun and names:
        before = set(begun.validation)
        valid = torch.tensor([name in before for name in names]).nonzero()[:, 0]
    elif any(own):
        valid = torch.tensor(own).nonzero()[:, 0]
    elif names and is_new:
        classes = labels.argsort(stable=True).split(labels.bincount().tolist())
        valid = torch.cat([index[in_order(len(index))[: num_valid(data, len(index))]] for index in classes])
    else:  # the recorded data sets; and a folder, as earlier versions split it
        order = in_order(len(labels))
        valid = order[: int(data.valid_size * len(labels))]
    if begun and names and len(valid) == 0:
        raise InputError(
            "none of the images that validated before is there any more: restore some, or train another run"
        )
    if not 0 < len(valid) < len(labels):
        raise InputError(
            f"valid_size={data.valid_size} of {len(labels)} images leaves none to train on or to validate on"
        )
    if not names:
        return order[len(valid) :], valid
    is_train = torch.ones(len(labels), dtype=torch.bool).index_fill(0, valid, False)
    # Mixed, so that the first few, whose glimpses are drawn, are of several classes.
    return is_train.nonzero()[:, 0], valid.sort().values[in_order(len(valid), generators[1])]


def num_valid(data: DataConfig, count: int) -> int:
    """How many images of a class validate, of so many: at least one, if one is left to train on."""
    return min(max(round(data.valid_size * count), 1), max(count - 1, 0))


def recorded(data_set: DataSet, valid: Tensor) -> ImageRecord:
    """What a checkpoint keeps of the images: of a folder, with the names of those that validate."""
    return data_set.record._replace(validation=[data_set.names[i] for i in valid.sort().values if data_set.names])


def begun_with(checkpoint: dict) -> ImageRecord | None:
    """What images a checkpoint's run was begun with; None, and a line, if it is of a version that did not say."""
    begun = ImageRecord.of(checkpoint)
    if begun is None:
        print("[!] The checkpoint does not say what images it was trained on, so that changes go unnoticed")
    return begun


def check_unchanged(begun: ImageRecord | None, now: ImageRecord, data: DataConfig, accept_changes: bool):
    """Raises InputError if a run was begun with other images than those there are now, unless that is accepted."""
    changes = begun.changes(now) if begun else ""
    if not changes:
        return
    changed = f"the images in {data.data_dir} have changed since the run began ({changes})"
    if data.dataset != "folder":
        raise InputError(f"{changed}: restore them, or train another run with --run_name=")
    if not accept_changes:
        raise InputError(
            f"{changed}: restore them, train another run with --run_name=, or continue with --accept_changes=True, "
            f"which validates with the images that validated before and trains on all others"
        )
    say(f"[!] {changed[0].upper()}{changed[1:]}")
