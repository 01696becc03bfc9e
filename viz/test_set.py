"""What a model does over a whole test set: where its glimpses fall, and how early it knows the class.

summary = summarise(open_checkpoint("models/mnist.pt"))
summary.correct / summary.num_images    # fraction of right predictions after 1, 2, ... glimpses
"""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from training.evaluation import confusion_of
from viz.figures import GAP, RIGHT, new_figure, place, short, show
from viz.files import by_defaults
from viz.record import Source

FINEST = 30  # cells of a heat map across an image, at most: finer ones would hold too few glimpses
WIDTH = 9  # inches
PER_ROW = 10  # classes side by side
MOST_NAMED = 40  # classes whose names a confusion matrix has room for
MOST_NUMBERED = 20  # classes whose numbers it has room for


class Summary(NamedTuple):
    """Counts and means over a test set, from one rollout of T glimpses per image."""

    first_location: str  # see `ModelConfig`
    num_images: int
    correct: np.ndarray  # (T,), images whose prediction is right after 1 to T glimpses
    by_glimpse: np.ndarray  # (T, rows, columns), glimpses in each cell of the image
    by_class: np.ndarray  # (num_classes, rows, columns), glimpses that the policy chose
    mean_image: np.ndarray  # (C, H, W), from 0 to 1
    class_means: np.ndarray  # (num_classes, C, H, W)
    confusion: np.ndarray  # (num_classes, num_classes), images of each class (row) by the class predicted (column)
    classes: list[str]


@torch.no_grad()
def summarise(source: Source) -> Summary:
    """Looks at every test image once, as a test with M = 1 does."""
    model, loader, first_locations, _ = source
    spec, steps, unchosen = loader.spec, model.num_glimpses, model.num_glimpses - model.num_choices
    rows, columns = min(spec.height, FINEST), min(spec.width, FINEST)
    correct = np.zeros(steps, int)
    by_glimpse = np.zeros((steps, rows, columns), int)
    by_class = np.zeros((len(spec.classes), rows, columns), int)
    sums = np.zeros((len(spec.classes), spec.num_channels, spec.height, spec.width))
    counts = np.zeros(len(spec.classes), int)
    finals = []
    begin = 0
    for batch in tqdm(loader, "Look", leave=False, disable=None):
        rollout = model(batch.images, first_locations[begin : begin + batch.count])
        begin += batch.count
        predictions = model.classifier(rollout.hiddens).argmax(dim=-1)  # (B, T)
        correct += (predictions == batch.labels[:, None]).sum(dim=0).numpy(force=True)
        finals.append((batch.labels, predictions[:, -1]))
        row, column = cells(rollout.locations, rows, columns)  # (B, T)
        labels = batch.labels.numpy(force=True)
        np.add.at(by_glimpse, (np.arange(steps), row, column), 1)
        np.add.at(by_class, (labels[:, None], row[:, unchosen:], column[:, unchosen:]), 1)
        np.add.at(sums, labels, (batch.images / 255).numpy(force=True))
        np.add.at(counts, labels, 1)
    class_means = sums / np.maximum(counts, 1)[:, None, None, None]
    mean_image = sums.sum(axis=0) / counts.sum()
    confusion = confusion_of(*map(torch.cat, zip(*finals, strict=True)), len(spec.classes))
    return Summary(
        model.first_location, begin, correct, by_glimpse, by_class, mean_image, class_means, confusion, spec.classes
    )


def cells(locations: Tensor, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the heat map in which each location (..., 2) lies; the border belongs to the last."""
    sizes = np.array([columns, rows])
    index = np.minimum(((locations.numpy(force=True) + 1) / 2 * sizes).astype(int), sizes - 1)
    return index[..., 1], index[..., 0]


@by_defaults
def heat_map_figure(summary: Summary) -> Figure:
    """Above, the mean image and where each glimpse falls; below, the same for each class, its glimpses together."""
    steps, num_classes = len(summary.by_glimpse), len(summary.classes)
    ratio = summary.mean_image.shape[1] / summary.mean_image.shape[2]
    head, title = 0.3, 0.22
    gap = min(GAP, WIDTH / (1 + steps) / 3)
    wide, small = min(WIDTH / (1 + steps), 1.5) - gap, WIDTH / PER_ROW - GAP  # of a map above, and below
    class_row = title + 2 * small * ratio + 2 * GAP
    lower = head + 2 * title + wide * ratio  # where the lower half begins
    figure = new_figure(WIDTH, lower + head + class_row * -(-num_classes // PER_ROW))

    def write(text: str, top: float):
        figure.text(GAP / 2 / WIDTH, 1 - (top + 0.07) / figure.get_figheight(), text, va="top", fontsize=10)

    begun = {"random": "the first at random, others chosen", "centre": "the first in the middle, others chosen",
             "learned": "all chosen"}[summary.first_location]  # fmt: skip
    write(f"Mean test image, and where the glimpses fall, on a logarithmic scale: {begun}", 0)
    for i in range(1 + steps):
        ax = place(figure, gap / 2 + i * (wide + gap), head + 2 * title, wide, wide * ratio)
        if i == 0:
            show_mean(ax, summary.mean_image)
            ax.set_title("mean image", fontsize=8, pad=3)
        else:
            counts = summary.by_glimpse[i - 1]
            show_counts(ax, counts, summary.mean_image)
            ax.set_title(f"glimpse {i}\npeak {peak(counts):.1f} %", fontsize=8, pad=3)
    write("Each class: its mean image, and where the glimpses fall that the policy chose for it", lower)
    for k in range(num_classes):
        row, column = divmod(k, PER_ROW)
        left, top = GAP / 2 + column * (small + GAP), lower + head + row * class_row + title
        ax = place(figure, left, top, small, small * ratio)
        show_mean(ax, summary.class_means[k])
        ax.set_title(short(summary.classes, k), fontsize=8, pad=3)
        ax = place(figure, left, top + small * ratio + GAP, small, small * ratio)
        show_counts(ax, summary.by_class[k], summary.class_means[k])
    return figure


def peak(counts: np.ndarray) -> float:
    """The largest fraction of the glimpses in one cell, %."""
    return 100 * counts.max() / max(counts.sum(), 1)


def show_mean(ax: Axes, mean_image: np.ndarray):
    """A mean image (C, H, W), as bright as it can be: the mean of digits anywhere on a canvas is dark."""
    show(ax, mean_image / (mean_image.max() or 1), np.zeros(len(mean_image)))


def show_counts(ax: Axes, counts: np.ndarray, mean_image: np.ndarray):
    """A heat map, black where no glimpse falls. Contours show the mean image.

    A policy may look at one place in most images. The scale, which is each map's own, is logarithmic, so that a single
    glimpse stays visible next to thousands.
    """
    scale = LogNorm(0.5, max(counts.max(), 1))
    ax.imshow(np.ma.masked_equal(counts, 0), cmap="inferno", norm=scale, interpolation="nearest", extent=(0, 1, 1, 0))
    grey = mean_image.mean(axis=0)
    height, width = grey.shape
    if np.ptp(grey) > grey.max() / 2:  # the mean of photographs has hardly a shape
        ax.contour((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height, grey,
                   levels=[grey.min() + np.ptp(grey) / 2], colors="#56B4E9", linewidths=0.8)  # fmt: skip
    ax.set(xticks=[], yticks=[], facecolor="black", aspect="auto", xlim=(0, 1), ylim=(1, 0))


@by_defaults
def accuracy_figure(summary: Summary) -> Figure:
    """How often the prediction is right after 1 to T glimpses."""
    accuracy = 100 * summary.correct / summary.num_images
    glimpses = np.arange(1, len(accuracy) + 1)
    figure = new_figure(6, 3.4)
    ax = figure.add_subplot()
    ax.plot(glimpses, accuracy, color=RIGHT, marker="o")
    for x, y in zip(glimpses, accuracy, strict=True):
        ax.annotate(f"{y:.1f}", (x, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9)
    chance = 100 / len(summary.classes)
    ax.axhline(chance, color="#999999", linestyle="--", linewidth=1)
    ax.annotate(
        "chance", (glimpses[-1], chance), xytext=(0, 3), textcoords="offset points", ha="right", color="#666666"
    )
    ax.set_title(f"early predictions, by a classifier trained after glimpse {glimpses[-1]}", fontsize=10)
    ax.set(xlabel="glimpses before the prediction", ylabel="test accuracy, %", ylim=(0, 112), xticks=glimpses)
    ax.spines[["right", "top"]].set_visible(False)
    figure.tight_layout()
    return figure


def confusion_figure(summary: Summary) -> Figure:
    """The images of each class (row) by the class that was predicted (column), as fractions of the row."""
    confusion, count = summary.confusion, len(summary.classes)
    figure = new_figure(WIDTH, WIDTH)
    ax = figure.add_subplot()
    ax.imshow(confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    if count <= MOST_NUMBERED:
        for row, column in np.argwhere(confusion):
            dark = confusion[row, column] > confusion[row].sum() / 2
            ax.text(column, row, str(confusion[row, column]), ha="center", va="center", fontsize=8,
                    color="white" if dark else "black")  # fmt: skip
    if count <= MOST_NAMED:
        names = [short(summary.classes, k) for k in range(count)]
        ax.set_xticks(range(count), names, fontsize=8, rotation=0 if max(map(len, names)) <= 2 else 90)
        ax.set_yticks(range(count), names, fontsize=8)
    right = confusion.trace() / max(confusion.sum(), 1)
    ax.set(xlabel="predicted class", ylabel="class")
    ax.set_title(f"{confusion.sum()} test images, {100 * right:.2f} % right", fontsize=10)
    figure.tight_layout()
    return figure
