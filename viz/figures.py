"""Draws what a model sees, frame by frame, and the curves of its training; writes GIF, MP4 and PNG.

    frames = list(glimpse_frames(load_glimpses("plots/ram_6_8x8_1/glimpses_30.npz")))
    save_picture(Path("glimpses.gif"), gif(frames, fps=1.5))

Figures are matplotlib's, drawn without a window. The colours are Okabe and Ito's, which colour-blind readers can
distinguish; right and wrong predictions differ by a sign as well.
"""

import functools
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from PIL import Image
from tqdm import tqdm

from training.cli import InputError, printable
from viz.files import by_defaults, to_image
from viz.record import Glimpses

BOX_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7")  # from the finest patch to the coarsest
RIGHT, WRONG, OTHER = "#0072B2", "#D55E00", "#BBBBBB"
DPI = 100
LARGEST = 2**16  # pixels of a picture's height, for matplotlib and GIF
PER_ROW = 6  # images side by side: 900 pixels, the width of a README
MOST_BARS = 10  # classes with a bar
LONGEST_NAME = 11  # characters

# Inches.
COLUMN, GAP = 1.5, 0.06
HEADER, TITLE, BARS = 0.25, 0.36, 0.5


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches that needs neither a window nor pyplot's state."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches from the figure's top left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def margin(glimpses: Glimpses) -> int:
    """Pixels to show beyond the border: as far as the boxes reach, up to a quarter of the image."""
    size = np.array(glimpses.images.shape[:-3:-1])  # width, height
    boxes = glimpses.boxes()
    reach = max(-boxes[..., :2].min(), (boxes[..., :2] + boxes[..., 2:] - size).max(), 0)
    return int(min(reach, size.max() // 4)) + 1


def columns(glimpses: Glimpses, below: float) -> tuple[Figure, list[tuple[Axes, float, float]]]:
    """A figure with a column for each image, in rows of PER_ROW.

    Args:
        below: inches to leave free below each image.
    Returns:
        The figure, and for each column the image's axes, and left and top of the free place, in inches.
    Raises:
        InputError: there are too many images for one picture.
    """
    count, around = len(glimpses.images), margin(glimpses)
    height, width = np.array(glimpses.images.shape[-2:]) + 2 * around
    tall = (COLUMN - GAP) * height / width
    block = TITLE + tall + below + GAP
    rows = -(-count // PER_ROW)
    if (HEADER + rows * block) * DPI >= LARGEST:
        raise InputError(f"{count} images make too tall a picture: draw fewer, with --num_images= or --indices=")
    figure = new_figure(COLUMN * min(count, PER_ROW), HEADER + rows * block)
    places = []
    for i in range(count):
        row, column = divmod(i, PER_ROW)
        left, top = column * COLUMN + GAP / 2, HEADER + row * block + TITLE
        ax = place(figure, left, top, COLUMN - GAP, tall)
        show(ax, glimpses.images[i], glimpses.outside, around)
        places.append((ax, left, top + tall))
    return figure, places


@by_defaults
def frame_figure(glimpses: Glimpses, step: int) -> Figure:
    """A glimpse of each image: its boxes and the path to it; below, the retina's patches, and a bar for each class."""
    num_patches = glimpses.patches.shape[2]
    side = min((COLUMN - GAP) / max(num_patches, 2), 0.6)  # of a patch, inches
    shown = [most_likely(glimpses, i) for i in range(len(glimpses.images))]
    names = max(len(short(glimpses.classes, k)) for classes in shown for k in classes)
    upright = names <= 2
    below = side + GAP + BARS + (0.16 if upright else 0.08 + 0.065 * names) + GAP
    figure, places = columns(glimpses, below)
    figure.text(0.5, 1 - 0.06 / figure.get_figheight(), f"glimpse {step + 1} of {glimpses.locations.shape[1]}",
                ha="center", va="top", fontsize=10)  # fmt: skip
    boxes = glimpses.boxes()
    for i, (ax, left, top) in enumerate(places):
        draw_path(ax, glimpses, i, step)
        draw_boxes(ax, boxes[i, step])
        draw_caption(ax, glimpses, i, step)
        start = left + (COLUMN - GAP - num_patches * side) / 2
        for k, patch in enumerate(glimpses.patches[i, step]):
            frame = place(figure, start + k * side + 0.02, top + GAP, side - 0.04, side - 0.04)
            show_patch(frame, patch, BOX_COLOURS[k % len(BOX_COLOURS)])
        bars = place(figure, left, top + GAP + side + GAP, COLUMN - GAP, BARS)
        draw_bars(bars, glimpses, i, step, shown[i], upright)
    return figure


@by_defaults
def path_figure(glimpses: Glimpses) -> Figure:
    """The whole path in each image, its glimpses numbered, and the finest box of each."""
    figure, places = columns(glimpses, 0)
    boxes, last = glimpses.boxes(), glimpses.locations.shape[1] - 1
    for i, (ax, _, _) in enumerate(places):
        draw_path(ax, glimpses, i, last)
        for step, (x, y) in enumerate(centres(glimpses, i)):
            draw_boxes(ax, boxes[i, step, :1])
            outlined = [withStroke(linewidth=2, foreground="black")]
            ax.text(x, y, str(step + 1), color="white", fontsize=8, ha="center", va="center", path_effects=outlined)
        draw_caption(ax, glimpses, i, last)
    return figure


def glimpse_frames(glimpses: Glimpses) -> Iterator[Image.Image]:
    """A picture of each glimpse."""
    for step in tqdm(range(glimpses.locations.shape[1]), "Draw", unit="frame", leave=False, disable=None):
        yield to_image(frame_figure(glimpses, step))


def show(ax: Axes, image: np.ndarray, outside: np.ndarray, around: int = 0):
    """An image (C, H, W), and around it as many pixels of what the retina reads there."""
    colours = image if len(image) == 3 else image.mean(axis=0, keepdims=True).repeat(3, axis=0)
    beyond = outside if len(outside) == 3 else outside.mean().repeat(3)
    _, height, width = image.shape
    ax.imshow(colours.transpose(1, 2, 0).clip(0, 1), interpolation="nearest", aspect="auto")
    ax.set(xlim=(-0.5 - around, width - 0.5 + around), ylim=(height - 0.5 + around, -0.5 - around))
    ax.set(xticks=[], yticks=[], facecolor=tuple(map(float, beyond)))
    if around:
        border = Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#777777", linewidth=0.6)
        ax.add_patch(border)


def show_patch(ax: Axes, patch: np.ndarray, colour: str):
    """A patch (C, g, g), framed in the colour of its box."""
    show(ax, patch, np.zeros(len(patch)))
    for spine in ax.spines.values():
        spine.set(color=colour, linewidth=2)


def centres(glimpses: Glimpses, i: int) -> np.ndarray:
    """Where the glimpses of image i are, (T, 2), in the units of its axes, in which the first pixel is around 0."""
    return (glimpses.locations[i] + 1) / 2 * glimpses.images.shape[:-3:-1] - 0.5


def draw_path(ax: Axes, glimpses: Glimpses, i: int, step: int):
    """The way from the first glimpse to this one."""
    outlined = [withStroke(linewidth=2.2, foreground="black")]
    ax.plot(*centres(glimpses, i)[: step + 1].T, color="white", linewidth=1, marker="o", markersize=2.5,
            path_effects=outlined)  # fmt: skip


def draw_boxes(ax: Axes, boxes: np.ndarray):
    """Outlines the patches of a glimpse, (num_patches, 3), each in a colour of its own."""
    for k, (left, top, size) in enumerate(boxes):
        colour = BOX_COLOURS[k % len(BOX_COLOURS)]
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), size, size, fill=False, edgecolor=colour, linewidth=1.8))


def draw_caption(ax: Axes, glimpses: Glimpses, i: int, step: int):
    """Above an image: its label if it has one, and the model's prediction after this glimpse."""
    label, prediction = glimpses.labels[i], glimpses.predictions[i, step]
    said = short(glimpses.classes, prediction)
    if label < 0:
        sign, colour = f"({100 * glimpses.probabilities[i, step, prediction]:.0f} %)", RIGHT
    else:
        sign, colour = ("\N{CHECK MARK}", RIGHT) if prediction == label else ("\N{BALLOT X}", WRONG)
        truth = short(glimpses.classes, label)
        ax.text(0, 1, f"is {truth}\n", transform=ax.transAxes, fontsize=9, va="bottom")
    is_last = step == glimpses.locations.shape[1] - 1
    says = f"{'says' if is_last else 'so far'} {said} {sign}"
    weight = "bold" if is_last else "normal"
    ax.text(0, 1, says, transform=ax.transAxes, fontsize=9, va="bottom", color=colour, weight=weight)


def short(classes: Sequence[str], k: int) -> str:
    """The name of class k, cut to what has room above an image, without matplotlib's formulas; #k if the font lacks a
    letter of it."""
    name = printable(classes[k])
    if any(font().get_char_index(ord(letter)) == 0 for letter in name):
        return f"#{k}"
    cut = name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return cut.replace("$", r"\$")


@functools.cache
def font() -> FT2Font:
    """The font that matplotlib brings and draws with by default."""
    return get_font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")


def most_likely(glimpses: Glimpses, i: int) -> list[int]:
    """The classes that have a bar in image i: its own, and those of the highest probabilities after any glimpse."""
    best = np.argsort(-glimpses.probabilities[i].max(axis=0), kind="stable").tolist()
    own = [int(label) for label in glimpses.labels[i : i + 1] if label >= 0]
    return sorted([*own, *(k for k in best if k not in own)][:MOST_BARS])


def draw_bars(ax: Axes, glimpses: Glimpses, i: int, step: int, shown: list[int], upright: bool):
    """The probabilities of classes after a glimpse: the label's in one colour, a wrong prediction's in another.

    Where there is no label, the prediction stands in for it.
    """
    prediction = glimpses.predictions[i, step]
    label = glimpses.labels[i] if glimpses.labels[i] >= 0 else prediction
    colours = [RIGHT if k == label else WRONG if k == prediction else OTHER for k in shown]
    ax.bar(range(len(shown)), glimpses.probabilities[i, step, shown], color=colours, width=0.8)
    names = [short(glimpses.classes, k) for k in shown]
    ax.set_xticks(range(len(shown)), names, fontsize=7, rotation=0 if upright else 90)
    for name, k in zip(ax.get_xticklabels(), shown, strict=True):
        name.set(color=RIGHT if k == label else "black", weight="bold" if k == label else "normal")
    ax.tick_params(length=0, pad=2)
    ax.set(xlim=(-0.6, len(shown) - 0.4), ylim=(0, 1), yticks=[])
    ax.axhline(0.5, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.spines[["left", "right", "top"]].set_visible(False)


@by_defaults
def curves_figure(metrics: list[dict]) -> Figure:
    """Error, cross-entropy, the baseline's squared error and the learning rate, over a training's epochs.

    Args:
        metrics: the lines of a run's metrics.jsonl.
    """
    epochs = [line["epoch"] for line in metrics]
    figure = new_figure(9, 5.4)
    parts = {"train": {"color": "#0072B2", "linestyle": "--"}, "valid": {"color": "#D55E00"}}
    parts = {part: style for part, style in parts.items() if metrics[-1][part]}  # a run may validate nothing
    panels = {"error, %": lambda part: 100 - part["acc"], "cross-entropy": lambda part: part["loss_action"],
              "squared error of the baseline": lambda part: part["loss_baseline"]}  # fmt: skip
    grid = figure.subplots(2, 2, sharex=True)
    for ax, (title, read) in zip(grid.flat, panels.items(), strict=False):
        for part, style in parts.items():
            ax.plot(epochs, [read(line[part]) for line in metrics], label=part, marker="o", markersize=3, **style)
        ax.set_title(title, fontsize=11)
        ax.set_ylim(0, None)
        ax.legend(frameon=False)
    if "valid" in parts:
        best = max(metrics, key=lambda line: line["valid"]["acc"])
        error = 100 - best["valid"]["acc"]
        grid[0, 0].plot(best["epoch"], error, color="black", marker="*", markersize=10)
        grid[0, 0].set_title(f"error, % (validation: {error:.2f} at best, after epoch {best['epoch']})", fontsize=11)
    grid[1, 1].plot(epochs, [line["lr"] for line in metrics], color="#009E73", marker="o", markersize=3)
    grid[1, 1].set_title("learning rate", fontsize=11)
    grid[1, 1].set_ylim(0, None)
    for ax in grid.flat:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(color="#EEEEEE")
        ax.spines[["right", "top"]].set_visible(False)
    for ax in grid[1]:
        ax.set_xlabel("epoch")
    figure.tight_layout()
    return figure


@by_defaults
def patches_figure(examples: dict[str, Glimpses]) -> Figure:
    """A column for each example: an image with the boxes of a glimpse, and the patches as the model receives them.

    Args:
        examples: titles, and glimpses, of which the first of the first image is drawn.
    """
    most_patches = max(glimpses.patches.shape[2] for glimpses in examples.values())
    figure = new_figure(9, 5.1)
    axes = figure.subplots(1 + most_patches, len(examples), height_ratios=[2.1] + [1] * most_patches, squeeze=False)
    for column, (title, glimpses) in zip(axes.T, examples.items(), strict=True):
        show(column[0], glimpses.images[0], glimpses.outside)
        draw_boxes(column[0], glimpses.boxes()[0, 0])
        column[0].set_title(title, fontsize=10)
        patches = glimpses.patches[0, 0]
        for k, (ax, patch) in enumerate(zip(column[1:], patches, strict=False)):
            ax.set_box_aspect(1)
            show_patch(ax, patch, BOX_COLOURS[k % len(BOX_COLOURS)])
        for ax in column[1 + len(patches) :]:
            ax.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.95, wspace=0.04, hspace=0.06)
    return figure
