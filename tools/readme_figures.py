"""Draws every picture of the README, from the shipped models or from those just trained.

    make gallery
    python gallery.py --data_dir=./data

A task's model is models/TASK.pt, or else the best checkpoint of its run: ckpt/ram_6_8x8_1/best.pt for mnist.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from averages import accuracy_figure, average, heat_map_figure
from config import TASKS, Config, InputError
from data_loader import get_train_valid_loader
from flags import parse_flags, refusals_told
from glimpses import look_at_chosen, open_checkpoint, patch_boxes
from modules import Retina
from pictures import BOX_COLOURS, animation, draw_boxes, glimpse_frames, new_figure, png, show, show_patch
from plot_glimpses import write
from utils import pick_device

PICTURED = ("mnist", "fashion", "digits", "translated60", "cluttered60", "cluttered100")
ANIMATED = ("mnist", "translated60", "cluttered60")
AVERAGED = ("mnist", "cluttered60")


@dataclass(frozen=True)
class GalleryConfig:
    """Draws every picture of the README."""

    data_dir: str = "./data"
    """Folder of the data sets."""
    models_dir: str = "./models"
    """Folder of the shipped models, TASK.pt."""
    ckpt_dir: str = "./ckpt"
    """Folder of the runs' checkpoints, for tasks without a shipped model."""
    out_dir: str = "./assets"
    """Folder to write to."""


def main(config: GalleryConfig):
    """Draws what there are models for, and says for which tasks there is none.

    Raises:
        InputError: data are missing, or a picture lacks its model.
    """
    out = Path(config.out_dir)
    write(out / "tasks.png", png(tasks_figure(config.data_dir)))
    missing = []
    for task in dict.fromkeys(ANIMATED + AVERAGED):
        path = find_model(task, config)
        if path is None:
            missing.append(task)
            continue
        source = open_checkpoint(path, config.data_dir)
        print(f"[*] {task}: {path}")
        if task in ANIMATED:
            chosen = look_at_chosen(source, indices=[], label="", errors=False, count=6)
            write(out / f"{task}.gif", animation(glimpse_frames(chosen), ".gif", fps=1.5))
        if task in AVERAGED:
            averages = average(source)
            write(out / f"{task}_heat_maps.png", png(heat_map_figure(averages)))
            write(out / f"{task}_accuracy.png", png(accuracy_figure(averages)))
    if missing:
        raise InputError(
            f"no model for {', '.join(missing)}, whose pictures stay as they were: put TASK.pt into "
            f"{config.models_dir}, or train: python main.py --task={missing[0]}"
        )


def find_model(task: str, config: GalleryConfig) -> Path | None:
    """The shipped model of a task, else that of its run, else None."""
    run = Config(task=task, ckpt_dir=config.ckpt_dir, **TASKS[task]).run_dir
    return next((path for path in (Path(config.models_dir) / f"{task}.pt", run / "best.pt") if path.exists()), None)


def tasks_figure(data_dir: str):
    """A column for each task: an image with the patches' boxes, then the patches as the model receives them."""
    most_patches = max(TASKS[task].get("num_patches", 1) for task in PICTURED)
    figure = new_figure(9, 5.1)
    axes = figure.subplots(1 + most_patches, len(PICTURED), height_ratios=[2.1] + [1] * most_patches, squeeze=False)
    for column, task in zip(axes.T, PICTURED, strict=True):
        draw_task(column, Config(task=task, data_dir=data_dir, **{"batch_size": 8, **TASKS[task]}))
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.95, wspace=0.04, hspace=0.06)
    return figure


def draw_task(column: list[Axes], config: Config):
    """Fills a column of axes from the first validation image of a task."""
    loader = get_train_valid_loader(config, pick_device(use_gpu=False))[1]
    image = next(iter(loader)).images[:1]
    shown = image / 255
    _, channels, height, width = image.shape
    bright = shown[0, 0].nonzero().float().mean(dim=0)  # somewhere on the digit, or among the clutter
    location = 2 * (bright.flip(0) + 0.5) / bright.new_tensor([width, height]) - 1
    retina, size = Retina(config.patch_size, config.num_patches, config.glimpse_scale), config.patch_size
    outside = np.array(loader.spec.mean, np.float32)
    mean = shown.new_tensor(outside)[:, None, None]  # what the model takes for 0, and reads beyond the border
    patches = retina(shown - mean, location[None]).view(config.num_patches, channels, size, size) + mean
    show(column[0], shown[0].numpy(), outside)
    draw_boxes(
        column[0], patch_boxes(location.numpy(), (height, width), size, config.num_patches, config.glimpse_scale)
    )
    column[0].set_title(config.task, fontsize=10)
    for ax in column[1 + config.num_patches :]:
        ax.axis("off")
    for ax, patch, colour in zip(column[1:], patches.numpy(), BOX_COLOURS, strict=False):
        ax.set_box_aspect(1)
        show_patch(ax, patch, colour)


if __name__ == "__main__":
    try:
        with refusals_told():
            main(parse_flags(GalleryConfig, None, GalleryConfig(), prog="gallery.py"))
    except InputError as error:
        sys.exit(f"gallery.py: {error}")
