"""Animates where a model looks, over a row of images.

    python plot_glimpses.py --plot_dir=./plots/ram_6_8x8_1 --epoch=30     # what the training saved
    python plot_glimpses.py --checkpoint=./ckpt/ram_6_8x8_1/best.pt       # a checkpoint, on the test images

A GIF needs nothing more than the requirements; --out=NAME.mp4 needs ffmpeg.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import InputError, config_of, parse_flags
from runs import Glimpses, load_checkpoint, load_glimpses

BOX_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")  # Okabe and Ito's, told apart by the colour-blind
RIGHT, WRONG = "#009E73", "#D55E00"


@dataclass(frozen=True)
class PlotConfig:
    """Animates where a model looks: the boxes of each glimpse and the path so far."""

    plot_dir: str = "./plots/ram_6_8x8_1"
    """Folder of the glimpses that a training saved, one file every plot_freq epochs."""
    epoch: int | None = None
    """Epoch whose glimpses to draw; None: the latest saved."""
    checkpoint: str = ""
    """Draw what the model of this file does on test images instead."""
    data_dir: str = ""
    """Folder of the data sets, for --checkpoint; empty: the one it was trained from."""
    num_images: int = 9
    """Images in the row, at most."""
    out: str = ""
    """File to write, .gif or .mp4; empty: a GIF named after what is drawn, beside the glimpses or the checkpoint."""
    fps: float = 1.5
    """Glimpses a second."""

    def __post_init__(self):
        if self.num_images < 1 or not 0 < self.fps <= 50:
            raise InputError(f"num_images={self.num_images} and fps={self.fps} must be at least 1, and above 0 to 50")
        if self.out and Path(self.out).suffix not in (".gif", ".mp4"):
            raise InputError(f"out={self.out} must end in .gif or .mp4")


def main(config: PlotConfig) -> Path:
    """Writes the animation and returns its path.

    Raises:
        InputError: there are no such glimpses, or no ffmpeg for an MP4.
    """
    if config.checkpoint:
        source = Path(config.checkpoint)
        glimpses = look(source, config.data_dir, config.num_images)
    else:
        source = find_glimpses(Path(config.plot_dir), config.epoch)
        glimpses = load_glimpses(source)
    path = Path(config.out) if config.out else source.with_suffix(".gif")
    if path.suffix == ".mp4" and not shutil.which("ffmpeg"):
        raise InputError(f"{path} needs ffmpeg, which is not installed: install it, or write a .gif")
    try:
        animate(glimpses, config.num_images, config.fps, path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}): choose another --out=") from error
    print(f"[*] Animation in {path}")
    return path


def find_glimpses(plot_dir: Path, epoch: int | None) -> Path:
    """The file of an epoch, or the latest.

    Raises:
        InputError: there is none.
    """
    saved = {int(path.stem.removeprefix("glimpses_")): path for path in plot_dir.glob("glimpses_[0-9]*.npz")}
    if not saved:
        raise InputError(f"no saved glimpses in {plot_dir}: train first, or name the run's folder with --plot_dir=")
    if epoch is not None and epoch not in saved:
        raise InputError(f"epoch={epoch} is not among those saved in {plot_dir}: {', '.join(map(str, sorted(saved)))}")
    return saved[max(saved) if epoch is None else epoch]


def look(checkpoint_path: Path, data_dir: str, num_images: int) -> Glimpses:
    """What the model of a checkpoint does on the first test images.

    Raises:
        InputError: the checkpoint or its data cannot be read.
    """
    import torch

    from data_loader import get_test_loader, spec_of
    from model import RecurrentAttention

    checkpoint = load_checkpoint(checkpoint_path)
    overrides = {"data_dir": data_dir} if data_dir else {}
    config = config_of({**checkpoint["config"], "batch_size": num_images, **overrides}, checkpoint_path)
    loader = get_test_loader(config, spec_of(checkpoint, checkpoint_path), torch.device("cpu"))
    model = RecurrentAttention.of(checkpoint, checkpoint_path).eval()
    images, labels, _ = next(iter(loader))
    with torch.no_grad():
        rollout = model(images, generator=torch.Generator().manual_seed(config.random_seed))
    return Glimpses.of(rollout, loader.denormalize(images), labels, loader.spec.classes, config)


def patch_boxes(glimpses: Glimpses) -> np.ndarray:
    """The pixels that each patch of each glimpse covers: (N, T, num_patches, 3), (left, top, width)."""
    height, width = glimpses.images.shape[-2:]
    centres = np.floor((glimpses.locations.astype(np.float32) + 1) / 2 * np.array([width, height], np.float32))
    widths = glimpses.patch_size * glimpses.glimpse_scale ** np.arange(glimpses.num_patches)
    corners = centres[:, :, None, :] - (widths // 2)[:, None]
    return np.concatenate([corners, np.broadcast_to(widths[:, None], (*corners.shape[:-1], 1))], axis=-1)


def animate(glimpses: Glimpses, num_images: int, fps: float, path: Path):
    """Draws a frame per glimpse: the images in a row, the glimpse's boxes, the path to it; at last the answer."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    import matplotlib.pyplot as plt
    from matplotlib.animation import FFMpegWriter, PillowWriter

    count, steps = min(num_images, len(glimpses.images)), glimpses.locations.shape[1]
    height, width = glimpses.images.shape[-2:]
    boxes = patch_boxes(glimpses)
    centres = (glimpses.locations + 1) / 2 * [width, height] - 0.5  # in the axes' units, where pixel 0 is around 0
    margin = glimpses.patch_size // 2  # a glimpse at the border reaches this far beyond it

    figure, axes = plt.subplots(1, count, figsize=(1.3 * count, 1.75 * height / width), dpi=100, squeeze=False)
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.02, top=0.8, wspace=0.05)
    writer = PillowWriter(fps=fps) if path.suffix == ".gif" else FFMpegWriter(fps=fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writer.saving(figure, str(path), dpi=100):
        for step in [*range(steps), steps - 1, steps - 1]:  # the last frame stands three times as long
            for i, ax in enumerate(axes[0]):
                ax.clear()
                draw_image(ax, glimpses.images[i], margin)
                ax.plot(*centres[i, : step + 1].T, color="white", linewidth=1, marker="o", markersize=2, alpha=0.8)
                draw_boxes(ax, boxes[i, step])
                label, prediction = (glimpses.classes[k] for k in (glimpses.labels[i], glimpses.predictions[i]))
                if step == steps - 1:
                    answer = f"{prediction}" if prediction == label else f"{prediction}, is {label}"
                    ax.set_title(answer, fontsize=10, color=RIGHT if prediction == label else WRONG, pad=3)
                else:
                    ax.set_title(f"{step + 1}/{steps}", fontsize=10, color="#555555", pad=3)
            writer.grab_frame()
    plt.close(figure)


def draw_image(ax, image: np.ndarray, margin: int):
    """Shows an image (C, H, W) with the zeros around it."""
    channels, height, width = image.shape
    pixels = image.transpose(1, 2, 0) if channels == 3 else image.mean(axis=0)
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xlim=(-0.5 - margin, width - 0.5 + margin), ylim=(height - 0.5 + margin, -0.5 - margin))
    ax.set(xticks=[], yticks=[], facecolor="black")


def draw_boxes(ax, boxes: np.ndarray):
    """Outlines the patches of a glimpse, (num_patches, 3), each in a colour of its own."""
    from matplotlib.patches import Rectangle

    for i, (left, top, size) in enumerate(boxes):
        colour = BOX_COLOURS[i % len(BOX_COLOURS)]
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, edgecolor=colour, linewidth=1.6))


if __name__ == "__main__":
    try:
        main(parse_flags(PlotConfig, None, PlotConfig(), prog="plot_glimpses.py"))
    except InputError as error:
        sys.exit(f"plot_glimpses.py: {error}")
