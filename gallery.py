"""Draws the README's picture of the tasks: an image of each, and what the retina makes of it.

python gallery.py --data_dir=./data
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from config import TASKS, Config, InputError, parse_flags
from data_loader import get_train_valid_loader
from modules import Retina
from plot_glimpses import BOX_COLOURS, draw_boxes, draw_image, patch_boxes
from runs import Glimpses

DRAWN = ("mnist", "fashion", "digits", "translated60", "cluttered60", "cluttered100")


@dataclass(frozen=True)
class GalleryConfig:
    """Draws an image of each task, and what the retina makes of it."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    out: str = "./assets/tasks.png"
    """File to write."""


def main(config: GalleryConfig):
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    import matplotlib.pyplot as plt

    most_patches = max(TASKS[task].get("num_patches", 1) for task in DRAWN)
    figure, axes = plt.subplots(
        1 + most_patches, len(DRAWN), figsize=(11, 6.2), dpi=100, height_ratios=[2.1] + [1] * most_patches
    )
    for column, task in zip(axes.T, DRAWN, strict=True):
        settings = Config(task=task, data_dir=config.data_dir, **{"batch_size": 8, **TASKS[task]})
        draw_task(column, settings)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.95, wspace=0.04, hspace=0.06)
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out)
    print(f"[*] Picture in {config.out}")


def draw_task(column: np.ndarray, config: Config):
    """Fills a column of axes: the image with the patches' boxes, then the patches as the model receives them."""
    loader = get_train_valid_loader(config, torch.device("cpu"))[1]
    batch = next(iter(loader))
    images, labels = loader.denormalize(batch.images[:1]), batch.labels[:1]
    bright = images[0, 0].nonzero().float().mean(dim=0)  # somewhere on the digit, or among the clutter
    location = 2 * (bright.flip(0) + 0.5) / torch.tensor([images.shape[3], images.shape[2]]) - 1
    retina = Retina(config.patch_size, config.num_patches, config.glimpse_scale)
    size = config.patch_size
    patches = retina(images, location[None]).view(config.num_patches, -1, size, size)
    glimpses = Glimpses(
        images=images.numpy(),
        labels=labels.numpy(),
        predictions=labels.numpy(),
        locations=location.numpy()[None, None],
        classes=np.array(loader.spec.classes),
        patch_size=size,
        num_patches=config.num_patches,
        glimpse_scale=config.glimpse_scale,
    )
    draw_image(column[0], glimpses.images[0], margin=0)
    draw_boxes(column[0], patch_boxes(glimpses)[0, 0])
    column[0].set_title(config.task, fontsize=11)
    for ax in column[1:]:
        ax.axis("off")
    for ax, patch, colour in zip(column[1:], patches.numpy(), BOX_COLOURS, strict=False):
        ax.axis("on")
        draw_image(ax, patch, margin=0)
        for spine in ax.spines.values():
            spine.set(color=colour, linewidth=2)


if __name__ == "__main__":
    try:
        main(parse_flags(GalleryConfig, None, GalleryConfig(), prog="gallery.py"))
    except InputError as error:
        sys.exit(f"gallery.py: {error}")
